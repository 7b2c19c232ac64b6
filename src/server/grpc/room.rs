//! What is kept for clients that may be away, so many at the most: sessions, and streams that can be resumed. A tenant has its
//! [share](crate::engine::Portions) of the places, and where it finds none, what nobody needs just now makes room.

use std::{
    cmp::Reverse,
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{
    engine::{Full, Portions, rates::Stays},
    error::{Code, Error, Result},
    server::access::Owner,
};

/// See the [module](self). Nobody finds what belongs to another tenant.
#[derive(Debug)]
pub(super) struct Places<T> {
    /// What they are, in words.
    kind: &'static str,
    entries: HashMap<String, Entry<T>>,
    portions: Portions<Arc<str>>,
    stays: Stays,
}

#[derive(Debug)]
struct Entry<T> {
    owner: Owner,
    since: Instant,
    what: T,
}

/// A name that nobody can guess.
fn draw_id() -> String {
    let draw = |k: u8| RandomState::new().hash_one(k);
    format!("{:016x}{:016x}", draw(0), draw(1))
}

impl<T> Places<T> {
    /// So many, and none of them taken.
    pub(super) fn new(kind: &'static str, most: usize) -> Self {
        Self { kind, entries: HashMap::new(), portions: Portions::new(most), stays: Stays::default() }
    }

    /// What the owner keeps under an id.
    pub(super) fn get(&self, owner: &Owner, id: &str) -> Option<&T> {
        self.entries.get(id).filter(|entry| entry.owner == *owner).map(|entry| &entry.what)
    }

    /// All that the owner keeps.
    pub(super) fn of(&mut self, owner: &Owner) -> impl Iterator<Item = &mut T> {
        self.entries.values_mut().filter(|entry| entry.owner == *owner).map(|entry| &mut entry.what)
    }

    /// Keeps something, and gives the id that was drawn for it. Where there is no place for the owner, something makes room
    /// that nobody needs: `idle` says since when that is so. What has made room comes along.
    ///
    /// # Errors
    /// `ResourceExhausted`, with a hint when to come back once anything was measured.
    pub(super) fn enter(
        &mut self,
        owner: &Owner,
        what: T,
        idle: impl Fn(&T) -> Option<Instant>,
    ) -> Result<(String, Option<T>)> {
        let gone = match self.portions.take(owner.as_ref(), 1) {
            Ok(()) => None,
            Err(full) => {
                // Where there are places, and only not for this one, it gets none of another's.
                let all = self.entries.iter().filter(|(_, entry)| full == Full::Everybody || entry.owner == *owner);
                let all = all.map(|(id, entry)| (id, &entry.owner, idle(&entry.what)));
                let Some(id) = least_wanted(all, owner) else { return Err(self.full(full)) };
                let gone = self.remove(&id);
                self.portions.overdraw(owner.as_ref(), 1);
                gone
            }
        };
        let id = draw_id();
        self.entries.insert(id.clone(), Entry { owner: owner.clone(), since: Instant::now(), what });
        Ok((id, gone))
    }

    fn full(&self, full: Full) -> Error {
        let (kind, most) = (self.kind, self.portions.total());
        let (why, held) = match full {
            Full::Everybody => (format!("all {most} places for {kind} are taken"), self.portions.used()),
            Full::Tenant(held) => {
                let why = format!(
                    "this tenant has {held} of {most} places for {kind}, and those that are left are for others"
                );
                (why, held)
            }
        };
        let error = Error::new(Code::ResourceExhausted, format!("{why}: try again later"));
        Error { retry_after: self.stays.free_after(1, held), ..error }
    }

    /// Keeps it no longer.
    pub(super) fn remove(&mut self, id: &str) -> Option<T> {
        let Entry { since, what, .. } = self.take_out(id)?;
        self.stays.record(since.elapsed(), 1);
        Some(what)
    }

    /// The same of something that came to nothing: it says nothing of how long places are held.
    pub(super) fn withdraw(&mut self, id: &str) -> Option<T> {
        self.take_out(id).map(|entry| entry.what)
    }

    fn take_out(&mut self, id: &str) -> Option<Entry<T>> {
        let entry = self.entries.remove(id)?;
        self.portions.give(entry.owner.as_ref(), 1);
        Some(entry)
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Of what nobody needs just now, what has been so for longest, of the tenant that has most of all. Who asks for room gets
/// it of its own, or of those that have more than it has. Each comes with its id, its owner, and since when nobody needs it.
fn least_wanted<'a>(
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

    fn tenant(name: &str) -> Owner {
        Some(name.into())
    }

    /// Enters something that somebody needs.
    fn needed(places: &mut Places<u32>, owner: &str) -> Result<String> {
        places.enter(&tenant(owner), 0, |_| None).map(|(id, _)| id)
    }

    #[test]
    fn a_tenant_that_asks_for_all_places_leaves_some() {
        let mut places = Places::new("things", 34);
        let held: Vec<_> = std::iter::from_fn(|| needed(&mut places, "a").ok()).collect();
        assert_eq!(held.len(), 32);
        let refused = needed(&mut places, "a").unwrap_err();
        assert!(refused.code == Code::ResourceExhausted && refused.message.contains("for others"), "{refused}");
        assert!(needed(&mut places, "b").is_ok() && needed(&mut places, "c").is_ok());
        assert!(needed(&mut places, "d").unwrap_err().message.contains("all 34 places"));
        assert!(places.get(&tenant("a"), &held[0]).is_some() && places.get(&tenant("b"), &held[0]).is_none());
        places.remove(&held[0]);
        assert!(needed(&mut places, "a").is_err() && needed(&mut places, "d").is_ok(), "who has least gets it");
        assert!(held[1..].iter().all(|id| places.remove(id).is_some()));
        assert_eq!(places.len(), 3);
        let mut everybodys = Places::new("things", 34);
        let all = std::iter::from_fn(|| everybodys.enter(&None, 0, |_| None).ok());
        assert_eq!(all.count(), 34, "where nobody has a name");
    }

    #[test]
    fn who_has_its_share_makes_room_of_its_own_alone() {
        let mut places = Places::new("things", 34);
        let now = Instant::now();
        let enter = |places: &mut Places<u32>, owner, what| {
            places.enter(&tenant(owner), what, |&what| (what < 2).then_some(now)).map(|(_, gone)| gone)
        };
        assert_eq!(enter(&mut places, "b", 0).unwrap(), None);
        let others = (0..).map_while(|_| enter(&mut places, "a", 2).ok()).count();
        assert_eq!(others, 32);
        assert!(enter(&mut places, "a", 2).is_err(), "one of b makes no room, though it is idle");
        let mut places = Places::new("things", 2);
        assert_eq!(enter(&mut places, "a", 1).unwrap(), None);
        assert_eq!(enter(&mut places, "a", 2).unwrap(), None);
        assert_eq!(enter(&mut places, "a", 3).unwrap(), Some(1));
        assert_eq!(places.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_is_told_how_often_places_become_free() {
        let mut places = Places::new("things", 4);
        let held: Vec<_> = (0..4).map(|_| needed(&mut places, "a").unwrap()).collect();
        assert_eq!(needed(&mut places, "a").unwrap_err().retry_after, None, "nothing was measured");
        tokio::time::advance(Duration::from_secs(12)).await;
        places.remove(&held[0]);
        needed(&mut places, "a").unwrap();
        assert_eq!(needed(&mut places, "a").unwrap_err().retry_after, Some(Duration::from_secs(3)));
    }
}
