//! A world around a scheduler: clients of every temper, a fake executor, and an observer who trusts nobody.

mod checks;
mod clients;
mod coverage;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use self::clients::{Client, Conversation, Pace, alone};
pub(super) use self::{
    clients::{Outbox, TakesBack},
    coverage::Coverage,
};
use crate::{
    config::{EngineConfig, KvCacheGroups},
    engine::{
        block_manager::{BlockHash, BlockHasher, Salt, blake3_128},
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions, Random},
        scheduler::Scheduler,
        sequence::{LeaseHolder, Sequence, Status},
    },
    error::Code,
    ids::{BlockId, SequenceId, TokenId},
    params::SamplingParams,
};

const VOCAB: u32 = 24;
/// Conversations of a history at once, beside those that were forked.
const CONVERSATIONS: usize = 3;
const EOS: TokenId = TokenId(0);
/// Steps that a tenant may have to wait for others: the longest wait in these histories is one of 250.
const PATIENCE: u32 = 500;

pub(super) fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
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
    /// Whether the newest step that was submitted may stay under way while the next one is planned.
    may_be_followed: bool,
    now: Instant,
    clients: BTreeMap<SequenceId, Client>,
    /// Of each tenant that could run: steps since it last had a row or waited for tokens.
    waited: BTreeMap<Option<Arc<str>>, u32>,
    next_id: u64,
    /// Prompts begin like one of these.
    texts: Vec<Vec<TokenId>>,
    /// Those that keep their blocks between two turns; replaced by others when they end.
    conversations: Vec<Arc<Conversation>>,
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
        // Layers that all see everything, that all slide, and some of each in few and in many groups.
        let window = Some(pick(&[1, 2, 5, 9, 20]));
        let kv_groups = match pick(&[0, 0, 0, 1, 2, 3, 4]) {
            0 => KvCacheGroups::ONE,
            1 => KvCacheGroups::of(&[window]),
            2 => KvCacheGroups::of(&[None, window]),
            3 => KvCacheGroups::of(&[window, window, None, window]),
            _ => KvCacheGroups::of(&[None, None, window]),
        };
        let config = EngineConfig {
            block_size: pick(&[1, 2, 3, 4, 8]),
            num_blocks: pick(&[8, 12, 16, 24, 48]) * kv_groups.count(),
            kv_groups,
            max_num_batched_tokens: pick(&[1, 2, 5, 9, 16, 40]),
            max_num_seqs: pick(&[1, 2, 3, 5, 8]),
            max_model_len: pick(&[24, 40, 64]),
            max_waiting: pick(&[2, 6, 12]),
            stream_capacity_tokens: 0,
            enable_prefix_caching: pick(&[0, 1, 1, 1, 1, 1]) == 1,
            prefixes_are_shared: !keeps_states,
            stall_timeout: Duration::from_millis(60),
            leased_kv_percent: pick(&[0, 30, 60, 100]),
            pinned_kv_percent: pick(&[0, 20, 60]),
            ..EngineConfig::default()
        };
        // One in three executors computes a step while the next one is planned.
        let overlaps = seed % 3 == 1;
        let (max_tokens_per_step, lag) = (pick(&[1, 1, 2, 4]), pick(&[0, 0, 60, 160]) as u8);
        let options = FakeOptions {
            vocab_size: VOCAB,
            max_tokens_per_step: if keeps_states || overlaps { 1 } else { max_tokens_per_step },
            keeps_states,
            lag: if overlaps { 0 } else { lag },
            overlaps,
            seed,
            mishap: None,
        };
        let depth = pick(if overlaps { &[2, 2, 2, 3] } else { &[1, 1, 2, 3] });
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
            may_be_followed: false,
            now: Instant::now(),
            clients: BTreeMap::new(),
            waited: BTreeMap::new(),
            next_id: 0,
            texts,
            conversations: Vec::new(),
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
            if self.chance(20) {
                self.say()?;
            }
            if self.chance(5) {
                self.fork_conversation()?;
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
        while let Some(conversation) = self.conversations.pop() {
            self.end_conversation(&conversation);
        }
        let counters = self.scheduler.block_counters();
        self.coverage.copy_on_write += counters.copies;
        self.coverage.eviction += counters.evictions;
        self.coverage.forced_hash_collision += counters.collisions;
        self.coverage.left_behind += counters.left_behind;
        self.coverage.preemption += self.scheduler.stats().preemptions;
        if self.window().is_some() {
            self.coverage.preemption_with_windows += self.scheduler.stats().preemptions;
        }
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
            logprobs: (self.options.overlaps && self.chance(8)).then_some(0),
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
        let takes_back = if self.chance(15) { 1 + self.random.below(8) } else { 0 };
        let alone = alone(&prompt, &params, takes_back);
        let least = self.options.max_tokens_per_step + usize::from(params.prompt_logprobs.is_some()) + takes_back;
        let outbox = Arc::new(Outbox::new(least + self.random.below(6)));
        let next_prompt_logprob = if params.prompt_logprobs.is_some() { 1 } else { prompt.len() };
        self.next_id += 1;
        let mut sequence = Sequence::new(SequenceId(self.next_id), prompt.clone().into(), params, outbox.clone());
        sequence.eos = [EOS].into();
        sequence.priority = [0, 0, 0, -1, 1][self.random.below(5)];
        let tenant = self.random.below(self.tenants.len());
        (sequence.tenant, sequence.weight) = self.tenants[tenant].clone();
        sequence.salt = [None, None, Some("a"), Some("b")][self.random.below(4)].map(Salt::untold);
        let pace =
            [Pace::Prompt, Pace::Prompt, Pace::Prompt, Pace::Slow, Pace::Slow, Pace::Never][self.random.below(6)];
        if takes_back > 0 {
            sequence.guard = Some(Box::new(TakesBack::new(takes_back)));
        }
        let client = Client {
            outbox,
            pace,
            alone,
            takes_back,
            conversation: None,
            kept: 0,
            received: Vec::new(),
            started: false,
            prompt,
            next_prompt_logprob,
        };
        (sequence, client)
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
        let EngineConfig { kv_groups, num_blocks, block_size, .. } = self.config;
        let cache = kv_groups.longest(num_blocks, block_size, self.step_tokens());
        self.config.max_model_len.min(cache.saturating_sub(self.options.max_tokens_per_step - 1))
    }

    /// Tokens of a sequence that a step may write.
    fn step_tokens(&self) -> usize {
        self.config.max_num_batched_tokens + self.options.max_tokens_per_step - 1
    }

    /// Tokens that some layers see, where there are such layers.
    fn window(&self) -> Option<usize> {
        self.config.kv_groups.windows().find(|&window| window < usize::MAX)
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

    /// The next turn of a conversation: it goes on from what was said, or from somewhere in it.
    fn say(&mut self) -> Result<(), String> {
        let k = self.random.below(self.conversations.len().max(CONVERSATIONS));
        let conversation = match self.conversations.get(k) {
            Some(conversation) => conversation.clone(),
            None => self.begin_conversation(),
        };
        if self.chance(10) {
            self.conversations.retain(|other| other.id() != conversation.id());
            self.end_conversation(&conversation);
            return self.scheduler.audit();
        }
        let speaks = |client: &Client| client.conversation.as_ref().is_some_and(|own| own.id() == conversation.id());
        let mut prompt = conversation.said();
        if self.clients.values().any(speaks) || prompt.len() + 2 > self.limit() {
            return Ok(());
        }
        if self.chance(30) {
            prompt.truncate(self.random.below(prompt.len() + 1));
        }
        prompt.extend((0..1 + self.random.below(6)).map(|_| TokenId(1 + self.random.below(4) as u32)));
        let (mut sequence, mut client) = self.request(prompt);
        let lease: Arc<dyn LeaseHolder> = conversation.clone();
        sequence.lease = Some(lease);
        client.kept = conversation.held();
        client.conversation = Some(conversation);
        self.add(sequence, client, |scheduler, sequence| scheduler.add(sequence))
    }

    fn begin_conversation(&mut self) -> Arc<Conversation> {
        self.next_id += 1;
        let most = [usize::MAX, usize::MAX, 12][self.random.below(3)];
        let conversation = Arc::new(Conversation::new(self.next_id, self.chance(30), most));
        self.conversations.push(conversation.clone());
        conversation
    }

    fn end_conversation(&mut self, conversation: &Conversation) {
        conversation.release();
        self.scheduler.sweep_leases();
        self.coverage.lease_lost += conversation.num_lost();
    }

    /// Another conversation goes on from what one of them has, computed or being computed.
    fn fork_conversation(&mut self) -> Result<(), String> {
        let parent = self.conversations.get(self.random.below(CONVERSATIONS)).cloned();
        let Some(parent) = parent.filter(|_| self.conversations.len() < 2 * CONVERSATIONS) else { return Ok(()) };
        let said = parent.said();
        let kept = self.random.below(said.len() + 1);
        let child = self.begin_conversation();
        child.goes_on_from(&said[..kept]);
        let shared = self.scheduler.fork_lease(parent.id(), child, kept);
        if shared > kept || shared > 0 && self.options.keeps_states {
            return Err(format!("a fork of {kept} tokens shares {shared}"));
        }
        self.coverage.lease_forked += u64::from(shared > 0);
        self.scheduler.audit()
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
        let has_left = parent.table.groups().any(|blocks| blocks.first() == Some(&BlockId::NULL));
        self.coverage.fork_beyond_a_window += u64::from(has_left);
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
        self.coverage.cancel_with_a_row_under_way += u64::from(self.options.overlaps && sequence.outstanding.is_some());
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
        self.windows_are_left()?;
        self.leases_are_bounded()?;
        if self.tenants.len() == 1 {
            self.first_in_order_progresses()?;
        } else {
            self.every_tenant_progresses()?;
        }
        if !submit && self.in_flight == 0 && self.scheduler.has_work() {
            return Err("there is work, but nothing to submit and nothing to collect".into());
        }
        if submit {
            self.executor.submit(&self.plan).map_err(|error| error.message)?;
            self.in_flight += 1;
            self.coverage.row_ahead += self.plan.rows.iter().filter(|row| row.follows.is_some()).count() as u64;
            self.may_be_followed = self.executor.runs_ahead() && self.scheduler.go_ahead();
            let (states, most) = (self.executor.num_states(), self.config.max_num_seqs);
            if states > most {
                return Err(format!("{states} states are kept, for a batch of {most}"));
            }
            self.coverage.as_many_states_as_rows += u64::from(self.options.keeps_states && most > 1 && states == most);
        }
        let must_collect = self.options.overlaps && !self.may_be_followed;
        self.coverage.collected_first += u64::from(must_collect && submit);
        if self.in_flight >= self.depth || self.in_flight > 0 && !submit {
            self.collect()?;
        }
        while self.in_flight > 0 && must_collect {
            self.collect()?;
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

    fn collect(&mut self) -> Result<(), String> {
        self.in_flight -= 1;
        let output = self.executor.collect().map_err(|error| error.message)?;
        let lives = |id| self.scheduler.sequences().any(|sequence| sequence.id == id);
        let surplus = output.sequences.iter().filter(|output| self.options.overlaps && !lives(output.id)).count();
        self.coverage.surplus_row += surplus as u64;
        let most = output.sequences.iter().map(|output| output.tokens.len()).max();
        self.coverage.several_tokens_at_once += u64::from(most > Some(1));
        let mut events = Vec::new();
        self.scheduler.apply(output, &mut events).map_err(|error| error.message)?;
        self.deliver(events)?;
        self.scheduler.audit()
    }
}
