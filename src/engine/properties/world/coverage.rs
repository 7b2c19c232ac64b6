//! How often each kind of event happened in the histories.

use std::fmt;

macro_rules! coverage {
    ($($event:ident),* $(,)?) => {
        /// How often each kind of event happened.
        #[derive(Clone, Debug, Default)]
        pub(in crate::engine::properties) struct Coverage { $(pub(super) $event: u64),* }

        impl Coverage {
            pub(in crate::engine::properties) fn add(&mut self, other: &Self) { $(self.$event += other.$event;)* }

            pub(in crate::engine::properties) fn counts(&self) -> Vec<(&'static str, u64)> { vec![$((stringify!($event), self.$event)),*] }
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
    left_behind,
    prefix_hit_beyond_a_window,
    fork_beyond_a_window,
    preemption_with_windows,
    as_many_states_as_rows,
    preemption_with_a_state,
    taken_back,
    taken_back_with_windows,
    taken_back_with_a_state,
    turn_from_a_lease,
    turn_from_a_lease_with_windows,
    lease_lost,
    lease_forked,
    row_ahead,
    surplus_row,
    collected_first,
    cancel_with_a_row_under_way,
);

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().iter().try_for_each(|(event, count)| writeln!(f, "{event:>36} {count}"))
    }
}
