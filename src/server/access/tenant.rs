//! One tenant: what it uses, beside what it may use.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    config::TenantLimits,
    engine::rates::Stays,
    error::{Code, Error, Result},
    server::bucket::{Bucket, Rate},
};

/// Cheap to share; all that its keys do counts together.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) name: Arc<str>,
    use_: Mutex<Use>,
}

/// What a call asks of its tenant's quotas, all of it at once: it is let in whole or not at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Total {
    /// Prompts.
    pub(super) requests: u32,
    /// Answers to each.
    pub(super) sequences: u32,
    /// Where the call says how many those are.
    pub(super) field: &'static str,
    /// Whether one sequence after the other will do as well.
    pub(super) or_fewer: bool,
}

#[derive(Debug)]
struct Use {
    limits: TenantLimits,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    streams: u32,
    stream_stays: Stays,
    sessions: u32,
    session_stays: Stays,
    /// Its keys were taken away: what it has goes on, nothing new begins.
    gone: bool,
}

impl Tenant {
    pub(super) fn new(name: Arc<str>, limits: TenantLimits, now: Instant) -> Arc<Self> {
        let (requests, tokens) = buckets(limits, now);
        let (stream_stays, session_stays) = Default::default();
        let use_ = Use { limits, requests, tokens, streams: 0, stream_stays, sessions: 0, session_stays, gone: false };
        Arc::new(Self { name, use_: Mutex::new(use_) })
    }

    fn used(&self) -> MutexGuard<'_, Use> {
        // Plain numbers: valid between any two statements.
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn limits(&self) -> TenantLimits {
        self.used().limits
    }

    /// Other limits from now on; what was used still counts.
    pub(super) fn limit(&self, limits: TenantLimits, now: Instant) {
        let mut used = self.used();
        let (requests, tokens) = buckets(limits, now);
        used.requests = requests.map(|full| used.requests.unwrap_or(full));
        used.tokens = tokens.map(|full| used.tokens.unwrap_or(full));
        used.limits = limits;
    }

    pub(super) fn go(&self) {
        self.used().gone = true;
    }

    /// Lets a call in, with all that it asks for; says how many sequences it may have at once.
    ///
    /// # Errors
    /// `ResourceExhausted` that names the quota; `InvalidArgument` that names the field where the call asks for more than
    /// the quota itself; `Unauthenticated` where the tenant is no more.
    pub(super) fn enter(&self, total: Total, now: Instant) -> Result<u32> {
        let used = &mut *self.used();
        used.check_here(&self.name)?;
        let limits = used.limits;
        total.check(limits)?;
        let (least, most) = total.sequences();
        let free = limits.max_streams.map_or(u32::MAX, |limit| limit.saturating_sub(used.streams));
        if free < least {
            let limit = limits.max_streams.unwrap_or_default();
            let why = format!("{} of {limit} streams are under way, and {least} more are asked for", used.streams);
            let free_after = used.stream_stays.free_after((least - free) as usize, used.streams as usize);
            return Err(Error { retry_after: free_after, ..over("max-streams", why) });
        }
        // Asked of both before anything is taken of one.
        let rates = [
            ("tokens-per-minute", limits.tokens_per_minute, &mut used.tokens, 1),
            ("requests-per-minute", limits.requests_per_minute, &mut used.requests, total.requests),
        ];
        for (name, limit, bucket, number) in rates {
            let bucket = limit.zip(bucket.as_mut());
            let wait = bucket.and_then(|(limit, bucket)| bucket.wait(number, Rate::a_minute(limit), now));
            if let Some(wait) = wait {
                let limit = limit.unwrap_or_default();
                return Err(over(name, format!("{limit} a minute are used up")).retry_after(wait));
            }
        }
        if let Some(requests) = &mut used.requests {
            requests.take(total.requests.into());
        }
        let sequences = most.min(free);
        used.streams += sequences;
        Ok(sequences)
    }

    /// So many sequences have ended, that long after they were let in; none where they came to nothing.
    pub(super) fn leave(&self, sequences: u32, stay: Option<Duration>) {
        let mut used = self.used();
        if let Some(stay) = stay {
            used.stream_stays.record(stay, sequences as usize);
        }
        used.streams = used.streams.saturating_sub(sequences);
    }

    /// Counts tokens that were computed for it.
    pub(super) fn charge(&self, tokens: u64) {
        if let Some(bucket) = &mut self.used().tokens {
            bucket.take(tokens);
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub(super) fn open_session(&self) -> Result<()> {
        let used = &mut *self.used();
        used.check_here(&self.name)?;
        if let Some(most) = used.limits.max_sessions.filter(|&most| used.sessions >= most) {
            let free_after = used.session_stays.free_after(1, used.sessions as usize);
            let error = over("max-sessions", format!("{most} sessions are open already"));
            return Err(Error { retry_after: free_after, ..error });
        }
        used.sessions += 1;
        Ok(())
    }

    /// Closes one that was open for so long; none where it was never opened.
    pub(super) fn close_session(&self, stay: Option<Duration>) {
        let mut used = self.used();
        if let Some(stay) = stay {
            used.session_stays.record(stay, 1);
        }
        used.sessions = used.sessions.saturating_sub(1);
    }
}

impl Use {
    fn check_here(&self, name: &str) -> Result<()> {
        match self.gone {
            true => Err(Error::new(Code::Unauthenticated, format!("the keys of {name} were taken away"))),
            false => Ok(()),
        }
    }
}

impl Total {
    /// Sequences: as many as there must be, and as many as are wanted.
    fn sequences(self) -> (u32, u32) {
        let most = self.requests.saturating_mul(self.sequences);
        (if self.or_fewer { 1 } else { most }, most)
    }

    /// Whether it can ever be let in.
    fn check(self, limits: TenantLimits) -> Result<()> {
        let (least, _) = self.sequences();
        let quotas = [
            ("requests-per-minute", limits.requests_per_minute, self.requests, 1),
            ("max-streams", limits.max_streams, least, self.sequences),
        ];
        for (name, limit, asked, each) in quotas {
            if let Some(limit) = limit.filter(|&limit| asked > limit) {
                let field = if each > limit { self.field } else { "prompt" };
                let why = format!("asks for {asked} at once, but the quota {name} of this key is {limit}");
                return Err(Error::invalid(field, why));
            }
        }
        Ok(())
    }
}

fn buckets(limits: TenantLimits, now: Instant) -> (Option<Bucket>, Option<Bucket>) {
    let full = |limit: Option<u32>| limit.map(|limit| Bucket::full(Rate::a_minute(limit), now));
    (full(limits.requests_per_minute), full(limits.tokens_per_minute))
}

/// A quota that is used up, by its name.
fn over(quota: &str, why: String) -> Error {
    Error { code: Code::ResourceExhausted, ..Error::invalid(quota, why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(limits: TenantLimits) -> (Arc<Tenant>, Instant) {
        let now = Instant::now();
        (Tenant::new("t".into(), limits, now), now)
    }

    /// One request for so many answers.
    fn answers(sequences: u32) -> Total {
        Total { requests: 1, sequences, field: "n", or_fewer: false }
    }

    /// Its name, and the seconds until it is worth trying again.
    fn quota<T: std::fmt::Debug>(outcome: Result<T>) -> (String, Option<u64>) {
        let error = outcome.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted);
        let seconds = error.retry_after.map(|after| after.as_secs_f64().round() as u64);
        (error.violations[0].field.clone(), seconds)
    }

    #[test]
    fn streams_are_counted_until_they_leave() {
        let (tenant, now) = tenant(TenantLimits { max_streams: Some(3), ..TenantLimits::default() });
        tenant.enter(answers(2), now).unwrap();
        assert_eq!(quota(tenant.enter(answers(2), now)).0, "max-streams");
        tenant.enter(answers(1), now).unwrap();
        tenant.leave(2, None);
        tenant.enter(answers(2), now).unwrap();
    }

    #[test]
    fn who_has_all_streams_and_sessions_it_may_have_is_told_how_often_they_end() {
        let limits = TenantLimits { max_streams: Some(6), max_sessions: Some(2), ..TenantLimits::default() };
        let (tenant, now) = tenant(limits);
        tenant.enter(answers(6), now).unwrap();
        (0..2).for_each(|_| tenant.open_session().unwrap());
        assert_eq!(quota(tenant.enter(answers(1), now)), ("max-streams".into(), None), "nothing was measured");
        assert_eq!(quota(tenant.open_session()), ("max-sessions".into(), None));
        tenant.leave(1, Some(Duration::from_secs(12)));
        tenant.enter(answers(1), now).unwrap();
        tenant.close_session(Some(Duration::from_secs(8)));
        tenant.open_session().unwrap();
        for (asked, seconds) in [(1, 2), (3, 6)] {
            assert_eq!(quota(tenant.enter(answers(asked), now)), ("max-streams".into(), Some(seconds)));
        }
        assert_eq!(quota(tenant.open_session()), ("max-sessions".into(), Some(4)));
    }

    #[test]
    fn a_request_that_is_refused_takes_nothing() {
        let limits =
            TenantLimits { requests_per_minute: Some(2), tokens_per_minute: Some(60), ..TenantLimits::default() };
        let (tenant, now) = tenant(limits);
        tenant.enter(answers(1), now).unwrap();
        tenant.charge(120);
        for _ in 0..5 {
            assert_eq!(quota(tenant.enter(answers(1), now)), ("tokens-per-minute".into(), Some(61)));
        }
        let later = now + Duration::from_secs(61);
        tenant.enter(answers(1), later).unwrap();
        tenant.enter(answers(1), later).unwrap();
        assert_eq!(quota(tenant.enter(answers(1), later)).0, "requests-per-minute");
    }

    #[test]
    fn a_call_is_let_in_whole_or_not_at_all() {
        let limits = TenantLimits { requests_per_minute: Some(3), max_streams: Some(6), ..TenantLimits::default() };
        let (tenant, now) = tenant(limits);
        let prompts = |requests, sequences| Total { requests, sequences, field: "n", or_fewer: false };
        for (total, field) in [(prompts(1, 7), "n"), (prompts(2, 4), "prompt"), (prompts(4, 1), "prompt")] {
            let error = tenant.enter(total, now).unwrap_err();
            assert_eq!((error.code, error.violations[0].field.as_str()), (Code::InvalidArgument, field), "{total:?}");
        }
        assert_eq!(tenant.enter(prompts(2, 2), now).unwrap(), 4);
        assert_eq!(quota(tenant.enter(prompts(1, 3), now)).0, "max-streams");
        assert_eq!(quota(tenant.enter(prompts(2, 1), now)), ("requests-per-minute".into(), Some(20)));
        assert_eq!(tenant.enter(prompts(1, 2), now).unwrap(), 2, "what was refused took nothing");
    }

    #[test]
    fn who_can_do_with_fewer_streams_gets_those_that_are_left() {
        let (tenant, now) = tenant(TenantLimits { max_streams: Some(3), ..TenantLimits::default() });
        let up_to = |sequences| Total { requests: 1, sequences, field: "inputs", or_fewer: true };
        assert_eq!(tenant.enter(up_to(2), now).unwrap(), 2);
        assert_eq!(tenant.enter(up_to(32), now).unwrap(), 1);
        assert_eq!(quota(tenant.enter(up_to(32), now)).0, "max-streams");
    }

    #[test]
    fn limits_that_change_keep_what_was_used() {
        let (tenant, now) = tenant(TenantLimits { requests_per_minute: Some(6), ..TenantLimits::default() });
        for _ in 0..6 {
            tenant.enter(answers(1), now).unwrap();
        }
        tenant.limit(
            TenantLimits { requests_per_minute: Some(6), max_streams: Some(99), ..TenantLimits::default() },
            now,
        );
        assert_eq!(quota(tenant.enter(answers(1), now)), ("requests-per-minute".into(), Some(10)));
        tenant.limit(TenantLimits::default(), now);
        tenant.enter(answers(1), now).unwrap();
    }

    #[test]
    fn a_tenant_without_keys_begins_nothing_new() {
        let (tenant, now) = tenant(TenantLimits::default());
        tenant.enter(answers(1), now).unwrap();
        tenant.go();
        assert_eq!(tenant.enter(answers(1), now).unwrap_err().code, Code::Unauthenticated);
        assert_eq!(tenant.open_session().unwrap_err().code, Code::Unauthenticated);
        tenant.leave(1, None);
    }
}
