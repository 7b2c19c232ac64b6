//! The state of one request inside the engine, who owns each part of it, and when it ends.

use std::{
    collections::HashMap,
    ops::{Index, IndexMut},
    sync::Arc,
    time::Instant,
};

use super::{
    block_manager::{BlockTable, Salt},
    faults::{Fault, planted},
};
use crate::{
    ids::{SequenceId, TokenId},
    layers::lora::Adapter,
    params::{FinishReason, Pooling, SampledToken, SampledTokens, SamplingParams, Usage},
    sampling::grammar::Grammar,
};

/// Whoever takes a sequence's tokens, as the scheduler sees it. A sequence samples only while its reader has room, so
/// the engine never waits for a reader and no computed token is lost.
///
/// The tokens of an [`Event`](super::scheduler::Event) must be handed over (and so leave [`room`](Self::room)) before
/// the next step is scheduled.
pub trait Reader: Send + Sync {
    /// Tokens that can be sent now without waiting.
    fn room(&self) -> usize;

    /// Tokens that can be sent to a reader that has taken everything; at least the executor's `max_tokens_per_step`.
    fn capacity(&self) -> usize;

    /// Whether a sequence that left the batch for want of room, and needs this much, comes back: not at the first token
    /// taken, or it would come and go with every one.
    fn may_resume(&self, needed: usize) -> bool {
        self.room() >= needed.max(self.capacity() / 2)
    }

    /// So many of the sequence's tokens have their keys and values: how far its prefill has come.
    fn computed(&self, _tokens: usize) {}

    /// Whether nobody is interested any more. Looked at in
    /// [`sweep_cancelled`](super::scheduler::Scheduler::sweep_cancelled) only.
    fn cancelled(&self) -> bool;
}

/// Whoever keeps a conversation's keys and values between two of its sequences, as the scheduler sees it.
pub trait LeaseHolder: Send + Sync {
    /// Which; unique while the process lives.
    fn id(&self) -> u64;

    /// Whether its blocks go only when nothing else helps.
    fn is_pinned(&self) -> bool;

    /// Whether nobody wants the blocks any more. Looked at in
    /// [`sweep_leases`](super::scheduler::Scheduler::sweep_leases) only.
    fn is_released(&self) -> bool;

    /// Most tokens that it may hold.
    fn max_tokens(&self) -> usize;

    /// It holds the first so many tokens of the conversation, from now on; pinned or not.
    fn holds(&self, tokens: usize, pinned: bool);

    /// It is the next to lose its blocks.
    fn warned(&self);

    /// It has lost its blocks to others.
    fn lost(&self);
}

/// Hears what a sequence says, token by token, and has it take back what must not be said.
pub trait Guard: Send {
    /// Hears the next token. After [`Heard::TakeBack`] it is as if the tokens taken back had not been heard.
    fn hear(&mut self, token: TokenId) -> Heard;

    /// Tokens that it ever holds back at once, each of which has a text.
    fn most_held(&self) -> usize;
}

/// What a guard makes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// So many of the newest tokens must not be handed over yet.
    Hold(usize),
    /// So many of the newest tokens, all held before this one, go; the first of them must not be chosen there again.
    TakeBack(usize),
}

/// Where a sequence comes among all others of its tenant, smallest first: by priority, then first come, first served.
/// The one place that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    priority: i32,
    arrival: u64,
    id: SequenceId,
}

/// What a sequence is doing. Any of them may hold blocks; only those that run have a row in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// In line for a row: new, preempted, or back from a stall.
    Waiting,
    /// In the batch.
    Running,
    /// Its reader has no room.
    Stalled {
        /// When the reader last took something, as far as the scheduler saw.
        since: Instant,
        /// What its room was then.
        room: usize,
    },
}

/// One request. The public fields are the request, set before [`Scheduler::add`](super::scheduler::Scheduler::add)
/// and never changed after it; the others belong to the scheduler and die with the sequence there.
pub struct Sequence {
    /// Which; unique while the process lives.
    pub id: SequenceId,
    /// Smaller runs first.
    pub priority: i32,
    /// Position in line among equal priorities, smaller first.
    pub arrival: u64,
    /// For whom it runs; none is a tenant like any other.
    pub tenant: Option<Arc<str>>,
    /// That tenant's share, beside the shares of others. At least 1.
    pub weight: u32,
    /// The prompt; never empty.
    pub prompt: Arc<[TokenId]>,
    /// How to sample and when to stop.
    pub params: Arc<SamplingParams>,
    /// The model's end-of-sequence tokens.
    pub eos: Arc<[TokenId]>,
    /// The tokens of `dry_sequence_breakers`.
    pub dry_breakers: Arc<[Vec<TokenId>]>,
    /// Keeps tenants apart in the prefix cache: only sequences of the same salt share blocks.
    pub salt: Option<Salt>,
    /// What its output must match; the executor keeps where in it the sequence stands.
    pub grammar: Option<Arc<Grammar>>,
    /// Set where its prompt's hidden states are wanted, and no token: it ends with its prompt. Its `max_tokens` is 0.
    pub pooling: Option<Pooling>,
    /// What stands beside the model's weights for it; its salt tells it from others.
    pub adapter: Option<Arc<Adapter>>,
    /// Takes the tokens.
    pub reader: Arc<dyn Reader>,
    /// Keeps it from saying some things.
    pub guard: Option<Box<dyn Guard>>,
    /// Keeps its blocks when it ends, and had those of the conversation so far.
    pub lease: Option<Arc<dyn LeaseHolder>>,
    /// Whether it ends where its reader does not keep up, instead of waiting for it.
    pub is_cut_off: bool,

    /// Prompt and output. Grows in `apply` only.
    pub(super) tokens: Vec<TokenId>,
    /// Tokens whose keys and values are, or with the steps in flight will be, in the blocks.
    pub(super) num_computed_tokens: usize,
    /// Blocks held; given back on preemption and at the end.
    pub(super) table: BlockTable,
    /// Where it stands.
    pub(super) status: Status,
    /// Its tenant, while it is with the scheduler.
    pub(super) tenant_key: TenantKey,
    /// Tokens of its prompt that its tenant was charged for, since it was first admitted.
    pub(super) charged_tokens: Option<usize>,
    /// Whether the blocks that its next row writes are there and its own; decided anew each step.
    pub(super) ready: bool,
    /// Set while a row that samples has been submitted and its tokens have not come back: the number of preemptions
    /// at that time, because the tokens of an earlier life count, its computed tokens do not.
    pub(super) outstanding: Option<u32>,
    /// The step that its newest row that samples is in, and which row of it that is.
    pub(super) sampled_at: (u64, u32),
    /// Set while two such rows are under way: the newer one computes the token that comes of the other.
    pub(super) is_ahead: bool,
    /// Most tokens that may come of the newest row that samples, as its executor was told. The reader's room may shrink
    /// meanwhile: what was promised stays.
    pub(super) max_new_tokens: usize,
    /// Times its blocks were taken away.
    pub(super) num_preemptions: u32,
    /// Tokens that the prefix cache had when the sequence first ran; set from then on.
    pub(super) cached_tokens: Option<u32>,
    /// Prompt and output tokens at which it ends, whatever it says; set by `add`.
    pub(super) max_len: usize,
    /// Position of the next token of the prompt whose log-probabilities are to be reported; the prompt's length where
    /// none are.
    pub(super) next_prompt_logprob: usize,
    /// Stretches of the prompt whose log-probabilities a step in flight will bring.
    pub(super) prompts_under_way: usize,
    /// The newest tokens, which the guard holds back from the reader; they are among `tokens`.
    pub(super) held: Vec<SampledToken>,
    /// Times it took tokens back.
    pub(super) num_rewinds: u32,
}

impl Sequence {
    /// A request of priority 0 that arrived in the order of its id, without end-of-sequence tokens or salt: set the
    /// fields to say otherwise.
    #[must_use]
    pub fn new(id: SequenceId, prompt: Arc<[TokenId]>, params: Arc<SamplingParams>, reader: Arc<dyn Reader>) -> Self {
        // Nothing predicts the first token.
        let next_prompt_logprob = if params.prompt_logprobs.is_some() { 1 } else { prompt.len() };
        Self {
            id,
            next_prompt_logprob,
            priority: 0,
            arrival: id.0,
            tenant: None,
            weight: 1,
            tokens: prompt.to_vec(),
            prompt,
            params,
            eos: Arc::new([]),
            dry_breakers: Arc::new([]),
            salt: None,
            grammar: None,
            pooling: None,
            adapter: None,
            reader,
            guard: None,
            lease: None,
            is_cut_off: false,
            prompts_under_way: 0,
            held: Vec::new(),
            num_rewinds: 0,
            num_computed_tokens: 0,
            table: BlockTable::default(),
            status: Status::Waiting,
            tenant_key: TenantKey::default(),
            charged_tokens: None,
            ready: false,
            outstanding: None,
            sampled_at: (0, 0),
            is_ahead: false,
            max_new_tokens: 0,
            num_preemptions: 0,
            cached_tokens: None,
            max_len: usize::MAX,
        }
    }

    /// Its place in line.
    #[must_use]
    pub fn order(&self) -> Order {
        Order { priority: self.priority, arrival: self.arrival, id: self.id }
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn num_output_tokens(&self) -> usize {
        self.tokens.len() - self.prompt.len()
    }

    /// Tokens that it can take now: its reader has room for them, and they do not go beyond its end.
    #[must_use]
    pub fn num_acceptable_tokens(&self) -> usize {
        let room = self.reader.room().saturating_sub(self.room_needed(0));
        room.min(self.max_len.saturating_sub(self.tokens.len()))
    }

    /// Known tokens that no step has been asked to compute. 0 while its next tokens are on their way, 1 for a
    /// decode, more for a prefill or where a grammar forced some.
    #[must_use]
    pub fn num_uncomputed_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Whether some of its prompt must still be computed for the log-probabilities, whatever the cache has of it.
    #[must_use]
    pub(super) fn wants_prompt_logprobs(&self) -> bool {
        self.next_prompt_logprob < self.prompt.len()
    }

    /// Whether all its prompt must be computed for it, whatever the cache has.
    #[must_use]
    pub(super) fn needs_whole_prompt(&self) -> bool {
        self.wants_prompt_logprobs() || self.pooling == Some(Pooling::Mean) && !planted(Fault::MeanOfUncached)
    }

    /// What its reader must have room for before it runs.
    pub(super) fn room_needed(&self, max_tokens_per_step: usize) -> usize {
        max_tokens_per_step + self.held.len() + self.prompts_under_way + usize::from(self.wants_prompt_logprobs())
    }

    /// Whether its reader is the reason that it does not run.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        matches!(self.status, Status::Stalled { .. })
    }

    /// What it has cost so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage {
            prompt_tokens: count(self.prompt.len()),
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: count(self.num_output_tokens()),
        }
    }

    /// Takes new tokens, up to the first that ends the sequence or completes what must not be said.
    ///
    /// A sequence that ends hands over what was held: it can no longer become what must not be said.
    pub(super) fn take(&mut self, tokens: SampledTokens) -> Taken {
        let mut taken = Taken::default();
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            let id = token.id;
            taken.count += 1;
            taken.finish = self.push(id);
            let heard = self.guard.as_mut().map_or(Heard::Hold(0), |guard| guard.hear(id));
            self.held.push(token);
            let hold = match heard {
                Heard::TakeBack(n) => {
                    let first = self.held.len() - n.min(self.held.len());
                    taken.finish = None;
                    taken.removed = self.held.drain(first..).chain(tokens).map(|token| token.id).collect();
                    self.tokens.truncate(self.tokens.len() - n.min(self.num_output_tokens()));
                    self.num_rewinds += 1;
                    return taken;
                }
                Heard::Hold(_) if taken.finish.is_some() => 0,
                Heard::Hold(n) => n.min(self.held.len()),
            };
            taken.released.extend(self.held.drain(..self.held.len() - hold));
            if taken.finish.is_some() {
                break;
            }
        }
        taken
    }

    /// Takes the next token; says whether it is the last one, and why. Stop strings are the reader's business.
    ///
    /// As in vLLM, neither end-of-sequence nor stop tokens end a sequence before `min_tokens` others; the sampler
    /// keeps them from being chosen.
    pub(super) fn push(&mut self, token: TokenId) -> Option<FinishReason> {
        let may_stop = self.num_output_tokens() >= self.params.min_tokens as usize;
        self.tokens.push(token);
        if may_stop && !self.params.ignore_eos && self.eos.contains(&token) {
            Some(FinishReason::EndOfSequence(token))
        } else if may_stop && self.params.stop_token_ids.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else if self.tokens.len() >= self.max_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

/// What came of new tokens.
#[derive(Default)]
pub(super) struct Taken {
    /// How many were looked at.
    pub(super) count: usize,
    /// What the reader gets.
    pub(super) released: SampledTokens,
    /// What was taken back, in order, with the tokens after it that were not looked at.
    pub(super) removed: Vec<TokenId>,
    /// Why the sequence ends, if it does.
    pub(super) finish: Option<FinishReason>,
}

/// Where a sequence is kept; used again after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u32);

/// Where a tenant's account is kept; used again when the tenant is forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TenantKey(pub(super) u32);

impl TenantKey {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// All sequences of an engine, found in constant time by key or id.
#[derive(Default)]
pub(super) struct Sequences {
    entries: Vec<Option<Sequence>>,
    vacant: Vec<Key>,
    keys: HashMap<SequenceId, Key>,
}

impl Sequences {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn key(&self, id: SequenceId) -> Option<Key> {
        self.keys.get(&id).copied()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Sequence> {
        self.entries.get(key.0 as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Sequence> {
        self.entries.get_mut(key.0 as usize)?.as_mut()
    }

    pub(super) fn insert(&mut self, sequence: Sequence) -> Key {
        let key = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Key(self.entries.len() as u32 - 1)
        });
        self.keys.insert(sequence.id, key);
        self.entries[key.0 as usize] = Some(sequence);
        key
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Sequence> {
        let sequence = self.entries.get_mut(key.0 as usize)?.take()?;
        self.keys.remove(&sequence.id);
        self.vacant.push(key);
        Some(sequence)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Sequence)> {
        (0..).map(Key).zip(&self.entries).filter_map(|(key, entry)| Some((key, entry.as_ref()?)))
    }
}

/// The keys that the scheduler has in its lists are those of sequences that live.
impl Index<Key> for Sequences {
    type Output = Sequence;

    fn index(&self, key: Key) -> &Sequence {
        self.get(key).expect("a listed key is alive")
    }
}

impl IndexMut<Key> for Sequences {
    fn index_mut(&mut self, key: Key) -> &mut Sequence {
        self.get_mut(key).expect("a listed key is alive")
    }
}
