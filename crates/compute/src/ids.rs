//! The newtypes that keep token, block, slot and sequence numbers from being mixed up.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The number as an index.
            #[must_use]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id!(
    /// An entry of the model's vocabulary.
    TokenId(u32)
);
id!(
    /// A block of the paged KV cache: `block_size` consecutive slots.
    BlockId(u32)
);
id!(
    /// A place for one token's keys and values: `block * block_size + offset`.
    Slot(u32)
);
id!(
    /// One sequence inside the engine; never reused while the process lives.
    SequenceId(u64)
);
id!(
    /// A place for what recurrent layers keep of one sequence, the same in all of them.
    StateSlot(u32)
);

impl BlockId {
    /// No block: what stands in a block table where a block was given back because no token sees it any more.
    pub const NULL: Self = Self(u32::MAX);
}
