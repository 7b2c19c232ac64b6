//! Who makes room where as much is kept for clients that are away as may be.

use std::{cmp::Reverse, collections::HashMap};

use tokio::time::Instant;

use crate::server::access::Owner;

/// Of what nobody needs just now, what has been so for longest, of the tenant that has most of all. Who asks for room gets
/// it of its own, or of those that have more than it has. Each comes with its id, its owner, and since when nobody needs it.
pub(super) fn least_wanted<'a>(
    all: impl Iterator<Item = (&'a String, &'a Owner, Option<Instant>)> + Clone,
    asking: &Owner,
) -> Option<String> {
    let mut held: HashMap<&Owner, usize> = HashMap::new();
    all.clone().for_each(|(_, owner, _)| *held.entry(owner).or_default() += 1);
    let number = |owner: &Owner| held.get(owner).copied().unwrap_or_default();
    let idle = all.filter_map(|(id, owner, since)| {
        let (theirs, is_own) = (number(owner), owner == asking);
        (is_own || theirs > number(asking)).then_some((Reverse(theirs), !is_own, since?, id))
    });
    idle.min().map(|(.., id)| id.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Who makes room for `asking`, of so many that belong to these and are idle for so many seconds.
    fn chosen(all: &[(&str, &str, Option<u64>)], asking: &str) -> Option<String> {
        let now = Instant::now() + Duration::from_secs(1000);
        let owned = |&(id, owner, idle): &(&str, &str, Option<u64>)| {
            (id.to_owned(), Some(owner.into()), idle.map(|seconds| now - Duration::from_secs(seconds)))
        };
        let all: Vec<(String, Owner, Option<Instant>)> = all.iter().map(owned).collect();
        least_wanted(all.iter().map(|(id, owner, since)| (id, owner, *since)), &Some(asking.into()))
    }

    #[test]
    fn the_longest_idle_of_who_has_most_makes_room_and_nobody_elses() {
        let all = [("1", "a", Some(5)), ("2", "a", Some(9)), ("3", "a", None), ("4", "b", Some(99)), ("5", "c", None)];
        assert_eq!(chosen(&all, "a").as_deref(), Some("2"));
        assert_eq!(chosen(&all, "b").as_deref(), Some("2"), "before its own, which is idle for longer");
        assert_eq!(chosen(&all, "c").as_deref(), Some("2"));
        assert_eq!(chosen(&all, "new").as_deref(), Some("2"));
        assert_eq!(chosen(&all[3..], "c"), None, "who has no more than the one who asks is let be");
        assert_eq!(chosen(&all[3..], "new").as_deref(), Some("4"));
        assert_eq!(chosen(&all[4..], "new"), None, "nothing is idle");
    }
}
