//! What must hold between two steps, and of what comes out of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{PATIENCE, World, clients::Pace};
use crate::{
    config::EngineConfig,
    engine::{
        scheduler::{End, Event},
        sequence::{Reader, Sequence},
    },
    error::Code,
    ids::{BlockId, SequenceId},
};

impl World {
    /// No sequence holds more of a group with a window than it sees and a step writes.
    pub(super) fn windows_are_left(&self) -> Result<(), String> {
        let EngineConfig { kv_groups, block_size, .. } = self.config;
        for sequence in self.scheduler.sequences() {
            for (blocks, window) in sequence.table.groups().zip(kv_groups.windows()).filter(|&(_, w)| w < usize::MAX) {
                let held = blocks.iter().filter(|&&block| block != BlockId::NULL).count();
                let of_step = self.step_tokens().div_ceil(block_size);
                if held > window.div_ceil(block_size) + of_step + 1 {
                    return Err(format!("sequence {} holds {held} blocks of a window of {window}", sequence.id));
                }
            }
        }
        Ok(())
    }

    /// Conversations keep no more between two turns than they may.
    pub(super) fn leases_are_bounded(&self) -> Result<(), String> {
        let (leased, most) = (self.scheduler.num_leased_blocks(), self.config.max_leased_blocks());
        if leased <= most { Ok(()) } else { Err(format!("{leased} blocks are leased, {most} may be")) }
    }

    /// Who is stalled, and how often each was preempted.
    pub(super) fn before(&self) -> BTreeMap<SequenceId, (bool, u32)> {
        let state = |sequence: &Sequence| (sequence.id, (sequence.is_stalled(), sequence.num_preemptions));
        self.scheduler.sequences().map(state).collect()
    }

    /// Counts what planning did.
    pub(super) fn compare(&mut self, before: &BTreeMap<SequenceId, (bool, u32)>) {
        for sequence in self.scheduler.sequences() {
            // Who joined because the one it waited for has ended was not there before.
            let Some(&(was_stalled, num_preemptions)) = before.get(&sequence.id) else { continue };
            let was_preempted = sequence.num_preemptions > num_preemptions;
            self.coverage.stalled_reader += u64::from(sequence.is_stalled() && !was_stalled);
            self.coverage.stalled_reader_came_back += u64::from(was_stalled && !sequence.is_stalled());
            self.coverage.preemption_with_a_state += u64::from(was_preempted && self.options.keeps_states);
            self.coverage.preemption_with_tokens_on_their_way +=
                u64::from(was_preempted && sequence.outstanding.is_some());
        }
        let rows = &self.plan.rows;
        self.coverage.chunked_prefill += rows.iter().filter(|row| !row.samples).count() as u64;
        let has = |decodes: bool| rows.iter().any(|row| (row.query.len() == 1) == decodes);
        self.coverage.mixed_step += u64::from(has(true) && has(false));
        self.coverage.late_tokens += u64::from(rows.is_empty() && self.in_flight == 0 && self.scheduler.has_work());
    }

    /// The first who can run has a row in this step, or has had one and waits for its tokens.
    pub(super) fn first_in_order_progresses(&self) -> Result<(), String> {
        let runnable = self.scheduler.sequences().filter(|sequence| !sequence.is_stalled());
        let Some(first) = runnable.min_by_key(|sequence| sequence.order()) else { return Ok(()) };
        let has_row = self.plan.rows.iter().any(|row| row.id == first.id);
        if has_row || first.outstanding.is_some() {
            return Ok(());
        }
        Err(format!("sequence {} comes first, is {:?} and does not run", first.id, first.status))
    }

    /// Of several tenants: if anybody can run, somebody has a row in this step or waits for tokens; and each of them does
    /// before long.
    pub(super) fn every_tenant_progresses(&mut self) -> Result<(), String> {
        let mut progress = BTreeMap::new();
        for sequence in self.scheduler.sequences().filter(|sequence| !sequence.is_stalled()) {
            let runs = sequence.outstanding.is_some() || self.plan.rows.iter().any(|row| row.id == sequence.id);
            *progress.entry(sequence.tenant.clone()).or_insert(false) |= runs;
        }
        self.waited.retain(|tenant, _| progress.contains_key(tenant));
        for (tenant, runs) in progress {
            let waited = self.waited.entry(tenant.clone()).or_insert(0);
            *waited = if runs { 0 } else { *waited + 1 };
            if *waited > PATIENCE {
                return Err(format!("tenant {tenant:?} has waited for {waited} steps"));
            }
        }
        let tenants: BTreeSet<_> = self.scheduler.sequences().map(|sequence| sequence.tenant.clone()).collect();
        self.coverage.several_tenants += u64::from(tenants.len() > 1);
        let mut runnable = self.scheduler.sequences().filter(|sequence| !sequence.is_stalled()).peekable();
        let is_idle = self.plan.rows.is_empty() && self.in_flight == 0;
        if is_idle && runnable.peek().is_some() && runnable.all(|sequence| sequence.outstanding.is_none()) {
            return Err(format!("nobody runs of {} who could", self.scheduler.len()));
        }
        Ok(())
    }

    /// Takes events in for the clients, each of whom must hear what it would have heard alone.
    pub(super) fn deliver(&mut self, events: Vec<Event>) -> Result<(), String> {
        let (slides, keeps_states) = (self.window().is_some(), self.options.keeps_states);
        for event in events {
            let (Event::Started { id, .. }
            | Event::Prompt { id, .. }
            | Event::Tokens { id, .. }
            | Event::Ended { id, .. }) = event;
            let client = self.clients.get_mut(&id).ok_or_else(|| format!("{event:?} for nobody"))?;
            match event {
                Event::Started { cached_tokens, .. } => {
                    if std::mem::replace(&mut client.started, true) {
                        return Err(format!("sequence {id} started twice"));
                    }
                    if keeps_states && cached_tokens > 0 {
                        return Err(format!("sequence {id} goes on from {cached_tokens} tokens of others"));
                    }
                    self.coverage.prefix_hit += u64::from(cached_tokens > 0);
                    let from_lease = u64::from(client.kept > 0 && cached_tokens > 0);
                    self.coverage.turn_from_a_lease += from_lease;
                    self.coverage.turn_from_a_lease_with_windows += from_lease * u64::from(slides);
                    let beyond = self.config.kv_groups.windows().any(|window| cached_tokens as usize > window);
                    self.coverage.prefix_hit_beyond_a_window += u64::from(beyond);
                    let wholly = cached_tokens as usize % self.config.block_size == self.config.block_size - 1;
                    self.coverage.wholly_cached_prompt += u64::from(cached_tokens > 0 && wholly);
                }
                Event::Prompt { prompt, .. } => {
                    client.outbox.send(1)?;
                    let start = prompt.start as usize;
                    let known = client.prompt.get(start..start + prompt.tokens.len()).unwrap_or_default();
                    let same = known.iter().eq(prompt.tokens.iter().map(|token| &token.id));
                    if start != client.next_prompt_logprob || prompt.tokens.is_empty() || !same {
                        return Err(format!("sequence {id} got {prompt:?} at {}", client.next_prompt_logprob));
                    }
                    client.next_prompt_logprob = start + prompt.tokens.len();
                    self.coverage.prompt_logprobs += 1;
                    let preempted = self.scheduler.sequences().any(|other| other.id == id && other.num_preemptions > 0);
                    self.coverage.prompt_logprobs_after_preemption += u64::from(preempted);
                }
                Event::Tokens { tokens, .. } => {
                    if client.next_prompt_logprob < client.prompt.len() {
                        return Err(format!("sequence {id} answers before all of its prompt was reported"));
                    }
                    client.outbox.send(tokens.len())?;
                    client.received.extend(tokens.iter().map(|token| token.id));
                    if !client.alone.said.starts_with(&client.received) {
                        return Err(format!("sequence {id} got {:?}, alone {:?}", client.received, client.alone.said));
                    }
                }
                Event::Ended { end, usage, .. } => {
                    // What is held back when a client goes is counted, and never came.
                    let held = if matches!(end, End::Finished(_)) { 0 } else { client.takes_back };
                    let came = client.received.len();
                    if !(came..=came + held).contains(&(usage.completion_tokens as usize)) {
                        return Err(format!("{usage:?}, but {came} tokens came"));
                    }
                    match end {
                        End::Finished(reason)
                            if (&client.received, &reason) == (&client.alone.said, &client.alone.reason) =>
                        {
                            self.coverage.finished += 1;
                            let taken_back = u64::from(client.alone.has_taken_back);
                            self.coverage.taken_back += taken_back;
                            self.coverage.taken_back_with_windows += taken_back * u64::from(slides);
                            self.coverage.taken_back_with_a_state += taken_back * u64::from(keeps_states);
                            if let Some(conversation) = &client.conversation {
                                conversation.goes_on_from(&[&client.prompt[..], &client.received].concat());
                            }
                        }
                        End::Cancelled if client.outbox.cancelled() => {}
                        End::Failed(error) if error.code == Code::Aborted && client.pace != Pace::Prompt => {
                            self.coverage.stall_timeout += 1;
                        }
                        end => return Err(format!("sequence {id} ended as {end:?} after {:?}", client.received)),
                    }
                    self.clients.remove(&id);
                }
            }
        }
        Ok(())
    }
}
