//! A world around a scheduler: clients of every temper, a fake executor, and an observer who trusts nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    config::EngineConfig,
    engine::{
        block_manager::{BlockHash, BlockHasher, blake3_128},
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions, Random},
        scheduler::{End, Event, Scheduler},
        sequence::{Reader, Sequence, Status},
    },
    error::Code,
    ids::{SequenceId, TokenId},
    params::{FinishReason, SamplingParams},
};

const VOCAB: u32 = 24;
const EOS: TokenId = TokenId(0);

pub(super) fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// A reader's channel, counted only.
pub(super) struct Outbox {
    capacity: usize,
    queued: AtomicUsize,
    gone: AtomicBool,
}

impl Outbox {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, queued: AtomicUsize::new(0), gone: AtomicBool::new(false) }
    }

    pub(super) fn send(&self, n: usize) -> Result<(), String> {
        let queued = self.queued.fetch_add(n, Relaxed) + n;
        if queued <= self.capacity { Ok(()) } else { Err(format!("{queued} tokens for a reader of {}", self.capacity)) }
    }

    pub(super) fn take(&self, most: usize) {
        let queued = self.queued.load(Relaxed);
        self.queued.store(queued - queued.min(most), Relaxed);
    }
}

impl Reader for Outbox {
    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.queued.load(Relaxed))
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn cancelled(&self) -> bool {
        self.gone.load(Relaxed)
    }
}

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Prompt,
    Slow,
    Never,
}

struct Client {
    outbox: Arc<Outbox>,
    pace: Pace,
    /// What it would get alone, and how that would end.
    alone: (Vec<TokenId>, FinishReason),
    received: Vec<TokenId>,
    started: bool,
    /// The prompt, and the position of the next of its tokens whose log-probability must come; its end if none must.
    prompt: Vec<TokenId>,
    next_prompt_logprob: usize,
}

macro_rules! coverage {
    ($($event:ident),* $(,)?) => {
        /// How often each kind of event happened.
        #[derive(Clone, Debug, Default)]
        pub(super) struct Coverage { $($event: u64),* }

        impl Coverage {
            pub(super) fn add(&mut self, other: &Self) { $(self.$event += other.$event;)* }

            pub(super) fn counts(&self) -> Vec<(&'static str, u64)> { vec![$((stringify!($event), self.$event)),*] }
        }
    };
}

coverage!(
    preemption,
    preemption_with_tokens_on_their_way,
    copy_on_write,
    eviction,
    prefix_hit,
    wholly_cached_prompt,
    forced_hash_collision,
    cancel_while_waiting,
    cancel_in_prefill,
    cancel_in_decode,
    cancel_while_stalled,
    cancel_while_preempted,
    stalled_reader,
    stalled_reader_came_back,
    stall_timeout,
    oversize_request,
    full_queue,
    fork,
    chunked_prefill,
    mixed_step,
    several_tokens_at_once,
    late_tokens,
    finished,
    group,
    prompt_logprobs,
    prompt_logprobs_after_preemption,
    several_tenants,
    as_many_states_as_rows,
    preemption_with_a_state,
);

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().iter().try_for_each(|(event, count)| writeln!(f, "{event:>36} {count}"))
    }
}

/// Two bits: everything collides.
fn bad_hash(parent: BlockHash, bytes: &[u8]) -> BlockHash {
    blake3_128(parent, bytes) & 3
}

pub(super) struct World {
    random: Random,
    config: EngineConfig,
    options: FakeOptions,
    /// Steps in flight at once.
    depth: usize,
    scheduler: Scheduler,
    executor: FakeExecutor,
    plan: StepPlan,
    in_flight: usize,
    now: Instant,
    clients: BTreeMap<SequenceId, Client>,
    next_id: u64,
    /// Prompts begin like one of these.
    texts: Vec<Vec<TokenId>>,
    /// Who comes, and with what weight.
    tenants: Vec<(Option<Arc<str>>, u32)>,
    pub(super) coverage: Coverage,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x1234_5678_9abc_def1));
        // One in eight models keeps a state of each sequence.
        let keeps_states = seed % 8 == 7;
        let mut pick = |choices: &[usize]| choices[random.below(choices.len())];
        let config = EngineConfig {
            block_size: pick(&[1, 2, 3, 4, 8]),
            num_blocks: pick(&[8, 12, 16, 24, 48]),
            max_num_batched_tokens: pick(&[1, 2, 5, 9, 16, 40]),
            max_num_seqs: pick(&[1, 2, 3, 5, 8]),
            max_model_len: pick(&[24, 40, 64]),
            max_waiting: pick(&[2, 6, 12]),
            stream_capacity_tokens: 0,
            enable_prefix_caching: pick(&[0, 1, 1, 1, 1, 1]) == 1,
            prefixes_are_shared: !keeps_states,
            stall_timeout: Duration::from_millis(60),
            ..EngineConfig::default()
        };
        let options = FakeOptions {
            vocab_size: VOCAB,
            max_tokens_per_step: if keeps_states { 1 } else { pick(&[1, 1, 2, 4]) },
            keeps_states,
            lag: pick(&[0, 0, 60, 160]) as u8,
            seed,
            mishap: None,
        };
        let depth = pick(&[1, 1, 2, 3]);
        let num_tenants = pick(&[1, 1, 1, 2, 3]);
        let hasher: BlockHasher = if pick(&[0, 0, 1]) == 1 { bad_hash } else { blake3_128 };
        let texts = (0..4).map(|_| (0..64).map(|_| TokenId(1 + random.below(2) as u32)).collect()).collect();
        let all = [None, Some("one"), Some("two")].map(|name| name.map(Arc::from));
        let tenants = all.into_iter().take(num_tenants).map(|name| (name, 1 + random.below(4) as u32)).collect();
        Self {
            random,
            tenants,
            scheduler: Scheduler::with_hasher(&config, options.max_tokens_per_step, hasher),
            executor: FakeExecutor::new(&config, options.clone()),
            config,
            options,
            depth,
            plan: StepPlan::default(),
            in_flight: 0,
            now: Instant::now(),
            clients: BTreeMap::new(),
            next_id: 0,
            texts,
            coverage: Coverage::default(),
        }
    }

    pub(super) fn describe(&self) -> String {
        let Self { config, options, depth, .. } = self;
        format!("step {}, depth {depth}, {config:?}, {options:?}", self.plan.step)
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100) < percent
    }

    /// A busy time, a time for those who are left, and a look at what remains.
    pub(super) fn run(&mut self) -> Result<(), String> {
        for _ in 0..150 {
            if self.chance(40) {
                self.arrive()?;
            }
            if self.chance(6) {
                self.fork()?;
            }
            if self.chance(5) {
                self.arrive_together()?;
            }
            if self.chance(12) {
                self.leave()?;
            }
            self.step()?;
        }
        let mut steps = 0;
        while !self.clients.is_empty() || self.in_flight > 0 || self.scheduler.has_work() {
            self.step()?;
            steps += 1;
            if steps > 20_000 {
                return Err(format!("{} requests never end", self.clients.len()));
            }
        }
        let counters = self.scheduler.block_counters();
        self.coverage.copy_on_write += counters.copies;
        self.coverage.eviction += counters.evictions;
        self.coverage.forced_hash_collision += counters.collisions;
        self.coverage.preemption += self.scheduler.stats().preemptions;
        match (self.scheduler.len(), self.scheduler.stats().used_blocks, self.executor.num_sequences()) {
            (0, 0, 0) => Ok(()),
            left => Err(format!("sequences, blocks, and the executor's sequences left over: {left:?}")),
        }
    }

    fn params(&mut self) -> SamplingParams {
        let max_tokens = 1 + self.random.below(20) as u32;
        SamplingParams {
            max_tokens: Some(max_tokens),
            min_tokens: self.random.below(max_tokens as usize / 2 + 1) as u32,
            ignore_eos: self.chance(30),
            prompt_logprobs: self.chance(15).then_some(0),
            stop_token_ids: if self.chance(20) {
                vec![TokenId(self.random.below(VOCAB as usize) as u32)]
            } else {
                vec![]
            },
            ..SamplingParams::default()
        }
    }

    fn request(&mut self, prompt: Vec<TokenId>) -> (Sequence, Client) {
        let params = Arc::new(self.params());
        self.request_with(prompt, params)
    }

    fn request_with(&mut self, prompt: Vec<TokenId>, params: Arc<SamplingParams>) -> (Sequence, Client) {
        let alone = alone(&prompt, &params);
        let least = self.options.max_tokens_per_step + usize::from(params.prompt_logprobs.is_some());
        let outbox = Arc::new(Outbox::new(least + self.random.below(6)));
        let next_prompt_logprob = if params.prompt_logprobs.is_some() { 1 } else { prompt.len() };
        self.next_id += 1;
        let mut sequence = Sequence::new(SequenceId(self.next_id), prompt.clone().into(), params, outbox.clone());
        sequence.eos = [EOS].into();
        sequence.priority = [0, 0, 0, -1, 1][self.random.below(5)];
        let tenant = self.random.below(self.tenants.len());
        (sequence.tenant, sequence.weight) = self.tenants[tenant].clone();
        sequence.salt = [None, None, Some("a"), Some("b")][self.random.below(4)].map(Arc::from);
        let pace =
            [Pace::Prompt, Pace::Prompt, Pace::Prompt, Pace::Slow, Pace::Slow, Pace::Never][self.random.below(6)];
        (sequence, Client { outbox, pace, alone, received: Vec::new(), started: false, prompt, next_prompt_logprob })
    }

    /// Several clients with one prompt, whose sequences come as a group.
    fn arrive_together(&mut self) -> Result<(), String> {
        let text = self.random.below(self.texts.len());
        let prompt = self.texts[text][..1 + self.random.below(20)].to_vec();
        let (first, client) = self.request(prompt.clone());
        let most = prompt.len() + first.params.max_tokens.unwrap_or(0) as usize;
        let (params, priority, salt) = (first.params.clone(), first.priority, first.salt.clone());
        let tenant = first.tenant.clone();
        let mut group = vec![(first, client)];
        for _ in 0..1 + self.random.below(3) {
            let (sequence, client) = self.request_with(prompt.clone(), params.clone());
            group.push((Sequence { priority, salt: salt.clone(), tenant: tenant.clone(), ..sequence }, client));
        }
        let (sequences, clients): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let ids: Vec<_> = sequences.iter().map(|sequence| sequence.id).collect();
        let places = self.config.max_num_seqs + self.config.max_waiting;
        let fits = most <= self.limit() && self.clients.len() + ids.len() <= places;
        match self.scheduler.add_group(sequences) {
            Ok(()) if fits => {
                self.coverage.group += 1;
                self.clients.extend(ids.into_iter().zip(clients));
            }
            Err(error) if !fits && matches!(error.code, Code::InvalidArgument | Code::ResourceExhausted) => {}
            other => return Err(format!("a group of {} (fits: {fits}): {other:?}", ids.len())),
        }
        self.scheduler.audit()
    }

    /// Tokens that a sequence may have.
    fn limit(&self) -> usize {
        let cache = self.config.num_blocks * self.config.block_size + 1 - self.options.max_tokens_per_step;
        self.config.max_model_len.min(cache)
    }

    fn arrive(&mut self) -> Result<(), String> {
        let text = self.random.below(self.texts.len());
        let mut prompt = self.texts[text][..1 + self.random.below(30)].to_vec();
        if self.chance(30) {
            let last = prompt.len() - 1;
            prompt[last] = TokenId(1 + self.random.below(VOCAB as usize - 1) as u32);
        }
        let (sequence, client) = self.request(prompt);
        self.add(sequence, client, |scheduler, sequence| scheduler.add(sequence))
    }

    /// A client goes on from what another has so far, or from somewhere in it.
    fn fork(&mut self) -> Result<(), String> {
        let parents: Vec<_> = self
            .scheduler
            .sequences()
            .filter(|parent| parent.num_computed_tokens > 0)
            .map(|parent| parent.id)
            .collect();
        let Some(&id) = parents.get(self.random.below(parents.len().max(1))) else { return Ok(()) };
        let Some(parent) = self.scheduler.sequences().find(|parent| parent.id == id) else { return Ok(()) };
        let (salt, mut prompt) = (parent.salt.clone(), parent.tokens.clone());
        if self.chance(60) {
            prompt.truncate(1 + self.random.below(prompt.len()));
            prompt.push(TokenId(3 + self.random.below(3) as u32));
        }
        let (mut sequence, client) = self.request(prompt);
        sequence.salt = salt;
        self.coverage.fork += 1;
        self.add(sequence, client, |scheduler, sequence| scheduler.fork(id, sequence))
    }

    fn add(
        &mut self,
        sequence: Sequence,
        client: Client,
        add: impl FnOnce(&mut Scheduler, Sequence) -> crate::error::Result<()>,
    ) -> Result<(), String> {
        let limit = self.limit();
        let most = sequence.prompt.len() + sequence.params.max_tokens.unwrap_or(0) as usize;
        let (id, is_full) = (sequence.id, self.clients.len() >= self.config.max_num_seqs + self.config.max_waiting);
        match add(&mut self.scheduler, sequence) {
            Ok(()) if most <= limit && !is_full => {
                self.clients.insert(id, client);
            }
            Err(error) if error.code == Code::InvalidArgument && most > limit => self.coverage.oversize_request += 1,
            Err(error) if error.code == Code::ResourceExhausted && is_full => self.coverage.full_queue += 1,
            other => return Err(format!("a request of {most} of {limit} tokens (full: {is_full}): {other:?}")),
        }
        self.scheduler.audit()
    }

    /// A client goes away, in whatever state its sequence is: half of them say so, half are found to be gone.
    fn leave(&mut self) -> Result<(), String> {
        // Those that wait for another one's prompt are not there to be seen.
        let live: Vec<_> = self.scheduler.sequences().map(|sequence| sequence.id).collect();
        let Some(&id) = live.get(self.random.below(live.len().max(1))) else { return Ok(()) };
        let Some(sequence) = self.scheduler.sequences().find(|sequence| sequence.id == id) else {
            return Err(format!("sequence {id} was lost"));
        };
        let count = match sequence.status {
            Status::Waiting if sequence.num_preemptions > 0 => &mut self.coverage.cancel_while_preempted,
            Status::Waiting => &mut self.coverage.cancel_while_waiting,
            Status::Stalled { .. } => &mut self.coverage.cancel_while_stalled,
            Status::Running if sequence.num_output_tokens() == 0 => &mut self.coverage.cancel_in_prefill,
            Status::Running => &mut self.coverage.cancel_in_decode,
        };
        *count += 1;
        let used = self.scheduler.stats().used_blocks;
        if self.chance(50) {
            self.clients.remove(&id);
            if !self.scheduler.abort(id) {
                return Err(format!("sequence {id} could not be aborted"));
            }
        } else if let Some(client) = self.clients.get(&id) {
            client.outbox.gone.store(true, Relaxed);
            let mut events = Vec::new();
            self.scheduler.sweep_cancelled(&mut events);
            self.deliver(events)?;
        }
        if self.clients.contains_key(&id) || self.scheduler.stats().used_blocks > used {
            return Err(format!("sequence {id} outlives its client"));
        }
        self.scheduler.audit()
    }

    fn step(&mut self) -> Result<(), String> {
        self.now += Duration::from_millis(1);
        let mut events = Vec::new();
        let before = self.before();
        let submit = self.scheduler.schedule(self.now, &mut self.plan, &mut events);
        self.compare(&before);
        self.deliver(events)?;
        self.scheduler.audit()?;
        if self.tenants.len() == 1 {
            self.first_in_order_progresses()?;
        } else {
            self.somebody_progresses()?;
        }
        if !submit && self.in_flight == 0 && self.scheduler.has_work() {
            return Err("there is work, but nothing to submit and nothing to collect".into());
        }
        if submit {
            self.executor.submit(&self.plan).map_err(|error| error.message)?;
            self.in_flight += 1;
            let (states, most) = (self.executor.num_states(), self.config.max_num_seqs);
            if states > most {
                return Err(format!("{states} states are kept, for a batch of {most}"));
            }
            self.coverage.as_many_states_as_rows += u64::from(self.options.keeps_states && most > 1 && states == most);
        }
        if self.in_flight >= self.depth || self.in_flight > 0 && !submit {
            self.in_flight -= 1;
            let output = self.executor.collect().map_err(|error| error.message)?;
            let most = output.sequences.iter().map(|output| output.tokens.len()).max();
            self.coverage.several_tokens_at_once += u64::from(most > Some(1));
            let mut events = Vec::new();
            self.scheduler.apply(output, &mut events).map_err(|error| error.message)?;
            self.deliver(events)?;
            self.scheduler.audit()?;
        }
        for client in self.clients.values() {
            match client.pace {
                Pace::Prompt => client.outbox.take(usize::MAX),
                Pace::Slow if self.random.below(4) == 0 => client.outbox.take(1),
                Pace::Slow | Pace::Never => {}
            }
        }
        Ok(())
    }

    /// Who is stalled, and how often each was preempted.
    fn before(&self) -> BTreeMap<SequenceId, (bool, u32)> {
        let state = |sequence: &Sequence| (sequence.id, (sequence.is_stalled(), sequence.num_preemptions));
        self.scheduler.sequences().map(state).collect()
    }

    /// Counts what planning did.
    fn compare(&mut self, before: &BTreeMap<SequenceId, (bool, u32)>) {
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
    fn first_in_order_progresses(&self) -> Result<(), String> {
        let runnable = self.scheduler.sequences().filter(|sequence| !sequence.is_stalled());
        let Some(first) = runnable.min_by_key(|sequence| sequence.order()) else { return Ok(()) };
        let has_row = self.plan.rows.iter().any(|row| row.id == first.id);
        if has_row || first.outstanding.is_some() {
            return Ok(());
        }
        Err(format!("sequence {} comes first, is {:?} and does not run", first.id, first.status))
    }

    /// Of several tenants: if anybody can run, somebody has a row in this step or waits for tokens.
    fn somebody_progresses(&mut self) -> Result<(), String> {
        let tenants: BTreeSet<_> = self.scheduler.sequences().map(|sequence| sequence.tenant.clone()).collect();
        self.coverage.several_tenants += u64::from(tenants.len() > 1);
        let mut runnable = self.scheduler.sequences().filter(|sequence| !sequence.is_stalled()).peekable();
        let is_idle = self.plan.rows.is_empty() && self.in_flight == 0;
        if is_idle && runnable.peek().is_some() && runnable.all(|sequence| sequence.outstanding.is_none()) {
            return Err(format!("nobody runs of {} who could", self.scheduler.len()));
        }
        Ok(())
    }

    fn deliver(&mut self, events: Vec<Event>) -> Result<(), String> {
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
                    if self.options.keeps_states && cached_tokens > 0 {
                        return Err(format!("sequence {id} goes on from {cached_tokens} tokens of others"));
                    }
                    self.coverage.prefix_hit += u64::from(cached_tokens > 0);
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
                    if !client.alone.0.starts_with(&client.received) {
                        return Err(format!("sequence {id} got {:?}, alone {:?}", client.received, client.alone.0));
                    }
                }
                Event::Ended { end, usage, .. } => {
                    if usage.completion_tokens as usize != client.received.len() {
                        return Err(format!("{usage:?}, but {} tokens came", client.received.len()));
                    }
                    match end {
                        End::Finished(reason) if (&client.received, &reason) == (&client.alone.0, &client.alone.1) => {
                            self.coverage.finished += 1;
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

/// What a request gets when there is nobody else, by the rules as written in the contract.
fn alone(prompt: &[TokenId], params: &SamplingParams) -> (Vec<TokenId>, FinishReason) {
    let mut tokens = FakeExecutor::expected(VOCAB, prompt, params.max_tokens.unwrap_or(0) as usize);
    for (i, &token) in tokens.iter().enumerate().skip(params.min_tokens as usize) {
        let reason = if token == EOS && !params.ignore_eos {
            FinishReason::EndOfSequence(token)
        } else if params.stop_token_ids.contains(&token) {
            FinishReason::StopToken(token)
        } else {
            continue;
        };
        tokens.truncate(i + 1);
        return (tokens, reason);
    }
    (tokens, FinishReason::Length)
}
