//! The kernel of follow.cu, as host C++, against a loop.

use super::{NONE, followed, launches};
use crate::kernels::cuda::host_twin::{Order, Output, Twin, address};

static TWIN: Twin = Twin::of("follow");

#[test]
fn ids_are_put_together_as_the_reference_does() {
    if !TWIN.exists() {
        return;
    }
    let chosen = [11, NONE, 12, 13, NONE];
    for count in [1, 5, 256, 700u32] {
        let ids: Vec<u32> = (0..count).map(|k| 1000 + k).collect();
        let places: Vec<u32> = (0..count).map(|k| if k % 3 == 1 { NONE } else { k * 7 % 5 }).collect();
        let want: Vec<u32> = ids.iter().zip(&places).map(|(&id, &place)| followed(id, place, &chosen)).collect();
        for order in Order::BOTH {
            let mut out = Output::unwritten(count as usize, 77u32);
            let addresses = [address(&ids), address(&places), address(&chosen), out.address()];
            // SAFETY: the addresses are of buffers of these sizes, and every place is one of the chosen.
            unsafe { TWIN.run(&launches::follow(addresses, count as usize), order) };
            assert_eq!(out.written(), want, "{count} ids");
        }
    }
}
