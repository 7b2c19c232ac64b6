//! Which list a sequence stands in, as its status says, and how it leaves for good.

use super::{End, Event, Place, Scheduler};
use crate::engine::{
    faults::{Fault, planted},
    sequence::{Key, Sequence, Status},
};

impl Scheduler {
    pub(super) fn enter(&mut self, sequence: Sequence) {
        let (tenant, order) = (self.tenants.enter(sequence.tenant.as_ref(), sequence.weight), sequence.order());
        let key = self.sequences.insert(sequence);
        self.sequences[key].tenant_key = tenant;
        self.tenants.wait(tenant, order, key);
    }

    pub(super) fn set_status(&mut self, key: Key, status: Status) {
        self.leave_list(key);
        let sequence = &mut self.sequences[key];
        sequence.status = status;
        sequence.ready = false;
        self.join_list(key);
    }

    /// Lists a sequence that is in no list where its status and its order put it.
    pub(super) fn join_list(&mut self, key: Key) {
        let sequence = &self.sequences[key];
        let (tenant, order) = (sequence.tenant_key, sequence.order());
        self.refused = None;
        match sequence.status {
            Status::Waiting => self.tenants.wait(tenant, order, key),
            Status::Running => {
                let place = self.place(key);
                let at = self.running.partition_point(|&(other, _)| other < place);
                self.running.insert(at, (place, key));
                self.tenants.run(tenant, order);
            }
            Status::Stalled { .. } => self.stalled.push(key),
        }
    }

    pub(super) fn leave_list(&mut self, key: Key) {
        let sequence = &self.sequences[key];
        let (tenant, order) = (sequence.tenant_key, sequence.order());
        match sequence.status {
            Status::Waiting => self.tenants.stop_waiting(tenant, order),
            Status::Running => {
                // Places are as old as the step, so this one cannot be searched for.
                if let Some(at) = self.running.iter().position(|&(_, other)| other == key) {
                    self.running.remove(at);
                }
                self.tenants.stop_running(tenant, order);
            }
            Status::Stalled { .. } => self.stalled.retain(|&other| other != key),
        }
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.release_siblings(key);
        self.leave_list(key);
        let Some(mut sequence) = self.sequences.remove(key) else { return };
        if sequence.num_output_tokens() == 0
            && let Some(charged) = sequence.charged_tokens
        {
            let uncomputed = sequence.num_uncomputed_tokens();
            self.tenants.refund(sequence.tenant_key, uncomputed.min(charged));
        }
        if !planted(Fault::BlocksLeaked) {
            self.keep_for_lease(&mut sequence);
            self.blocks.release(&mut sequence.table);
        }
        self.tenants.exit(sequence.tenant_key);
        self.refused = None;
        self.num_outstanding -= usize::from(sequence.outstanding.is_some());
        if sequence.cached_tokens.is_some() {
            self.retired.push(sequence.id);
        }
    }

    pub(super) fn end(&mut self, key: Key, end: End, events: &mut Vec<Event>) {
        let sequence = &self.sequences[key];
        events.push(Event::Ended { id: sequence.id, end, usage: sequence.usage() });
        self.remove(key);
    }

    /// Where a sequence comes now.
    pub(super) fn place(&self, key: Key) -> Place {
        let sequence = &self.sequences[key];
        self.tenants.place(sequence.tenant_key, sequence.order())
    }

    /// Brings places up to date with what was served since the last step.
    pub(super) fn line_up(&mut self) {
        self.tenants.settle();
        let is_shared = self.tenants.is_shared();
        if is_shared || self.was_shared {
            let mut running = std::mem::take(&mut self.running);
            running.iter_mut().for_each(|(place, key)| *place = self.place(*key));
            running.sort_unstable_by_key(|&(place, _)| place);
            self.running = running;
        }
        self.was_shared = is_shared;
    }
}
