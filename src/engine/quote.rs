//! What a request would cost, without running it, and whether its deadline can be met.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{
    Engine, Inner, Progress, Request,
    admission::{Admitted, Needs, RETRY_AFTER},
    rates::Ahead,
    step::Command,
    supervisor::Life,
    unavailable,
};
use crate::{
    error::{Code, Error, Result},
    ids::SequenceId,
};

/// Quotes that are worked on at once: each renders and tokenizes a prompt, as a request does.
pub(super) const QUOTES_AT_ONCE: usize = 64;

/// What a request would meet with now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quote {
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// … of which the prefix cache has this many.
    pub cached_tokens: u32,
    /// Requests before it.
    pub position: usize,
    /// When it should run; none before anything was measured.
    pub queue_time: Option<Duration>,
    /// When its first token should come; likewise.
    pub time_to_first_token: Option<Duration>,
}

impl Engine {
    /// Says what a request would meet with, if it came now. Nothing is queued or run.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), but a full queue or a deadline refuses nobody; `ResourceExhausted` where too many
    /// ask at once, before the text is tokenized.
    pub async fn quote(&self, request: Request) -> Result<Quote> {
        let permit = self.inner.quotes.clone().try_acquire_owned().map_err(|_| {
            let why = format!("{QUOTES_AT_ONCE} quotes are being made already: try again later");
            Error::new(Code::ResourceExhausted, why).retry_after(RETRY_AFTER)
        })?;
        let engine = self.clone();
        // The permit goes along with the work, which goes on where the caller goes away.
        let quoted = tokio::spawn(async move {
            let _permit = permit;
            engine.make_quote(request).await
        });
        quoted.await.map_err(|panic| Error::internal(format!("the quote failed: {panic}")))?
    }

    /// Where a request would stand that was queued now: what one is told that has yet to be admitted.
    #[must_use]
    pub fn would_queue(&self, tenant: Option<&str>, priority: i32) -> Progress {
        let Some(life) = self.inner.supervised.life() else { return Progress::Queued { position: 0, eta: None } };
        let ahead = life.ahead(tenant, (priority, SequenceId(u64::MAX)), self.config().max_num_seqs);
        Progress::Queued { position: ahead.requests, eta: self.rates().queue_time(ahead) }
    }

    async fn make_quote(&self, request: Request) -> Result<Quote> {
        let life = self.inner.supervised.life().ok_or_else(|| unavailable("the engine is restarting"))?;
        let Inner { info, text, grammars, .. } = &*self.inner;
        let (tenant, place) = (request.tenant.clone(), (request.priority, SequenceId(u64::MAX)));
        let needs = Admitted::new(info, text, grammars, self.config(), request).await?.needs();
        let ahead = life.ahead(tenant.as_deref(), place, self.config().max_num_seqs);
        let cached = cached_tokens(&life, &needs).await?;
        let prompt_tokens = needs.prompt.len();
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Ok(Quote {
            prompt_tokens: count(prompt_tokens),
            cached_tokens: count(cached),
            position: ahead.requests,
            queue_time: self.rates().queue_time(ahead),
            time_to_first_token: self.rates().time_to_first_token(ahead, prompt_tokens - cached.min(prompt_tokens)),
        })
    }

    /// Before anything is tokenized: whether a request would still be waiting at its deadline.
    ///
    /// # Errors
    /// `DeadlineExceeded`.
    pub(super) fn check_queue(&self, life: &Life, request: &Request, id: SequenceId) -> Result<()> {
        let Some(deadline) = request.deadline else { return Ok(()) };
        let ahead = life.ahead(request.tenant.as_deref(), (request.priority, id), self.config().max_num_seqs);
        within(deadline, self.rates().queue_time(ahead))
    }

    /// Whether a request can be answered before its deadline: its first token, and as many as it cannot do without.
    ///
    /// # Errors
    /// `DeadlineExceeded`.
    pub(super) async fn check_deadline(&self, life: &Life, needs: Needs, id: SequenceId) -> Result<()> {
        let Some(deadline) = needs.deadline else { return Ok(()) };
        let ahead = life.ahead(needs.tenant.as_deref(), (needs.priority, id), self.config().max_num_seqs);
        let (prompt, least) = (needs.prompt.len(), needs.least_tokens);
        if within(deadline, self.time_needed(ahead, prompt, least)).is_ok() {
            return Ok(());
        }
        // What is cached need not be computed; only those that would be refused have to know.
        let cached = timeout_at(deadline, cached_tokens(life, &needs)).await.map_err(|_| {
            Error::new(Code::DeadlineExceeded, "the deadline passed before the engine said what is cached")
        })??;
        within(deadline, self.time_needed(ahead, prompt - cached.min(prompt), least))
    }

    /// Whether inputs of so many tokens that nobody has computed can be embedded before a deadline.
    ///
    /// # Errors
    /// `DeadlineExceeded`.
    pub(super) fn check_prefill(
        &self,
        life: &Life,
        deadline: Option<Instant>,
        (tenant, priority): (Option<&str>, i32),
        tokens: usize,
    ) -> Result<()> {
        let Some(deadline) = deadline else { return Ok(()) };
        let ahead = life.ahead(tenant, (priority, SequenceId(u64::MAX)), self.config().max_num_seqs);
        within(deadline, self.rates().time_to_first_token(ahead, tokens))
    }

    fn time_needed(&self, ahead: Ahead, uncached: usize, least_tokens: usize) -> Option<Duration> {
        let first = self.rates().time_to_first_token(ahead, uncached)?;
        Some(first + self.rates().decode_time(least_tokens - 1).unwrap_or_default())
    }
}

fn within(deadline: Instant, needed: Option<Duration>) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    match needed.filter(|&needed| needed > left) {
        None => Ok(()),
        Some(needed) => {
            let why =
                format!("would take {} ms at the present rates, {} ms are left", needed.as_millis(), left.as_millis());
            Err(Error::new(Code::DeadlineExceeded, format!("the deadline cannot be met: it {why}")))
        }
    }
}

/// Of its prompt, the tokens that need not be computed for it.
async fn cached_tokens(life: &Life, needs: &Needs) -> Result<usize> {
    if !needs.reuses_prefix {
        return Ok(0);
    }
    let (tokens, salt) = (needs.prompt.clone(), needs.salt.clone());
    life.ask(|reply| Command::Lookup { tokens, salt, reply }).await
}
