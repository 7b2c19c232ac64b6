//! Fair shares: what each tenant was served, and whose turn it is by that.
//!
//! Virtual token counters (Sheng et al., *Fairness in Serving Large Language Models*, OSDI 2024): a tenant's counter grows
//! by the tokens that it is served, divided by its weight, and of those who wait the tenant with the smallest is next. A
//! prompt's tokens, without those that the cache had, count when it is admitted; generated ones as they come. Who comes
//! back from having nothing in line is lifted to those who waited meanwhile: time that was not used is not saved up.
//!
//! Two things are added to the paper's. A row in the batch stands for [`ROW_TOKENS`] more that its tenant is about to be
//! served: so whoever has fewer rows comes first where counters are level, and a whole batch is not refilled for one
//! tenant before its counter has moved. And who is behind by more than that takes the row of who is ahead, so that long
//! answers, which the paper lets run to their end, bend no shares.
//!
//! A tenant is known while it has sequences here. One that leaves is remembered as long as it has been served more than
//! those who wait, or it would come back with a clean slate; with the last sequence everything is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::engine::sequence::{Key, Order, TenantKey};

/// Tokens that a row counts for before it has brought them.
const ROW_TOKENS: usize = 16;
/// What one token counts at weight 1: enough for weights to divide it without a loss that would show.
const TOKEN: u128 = 1 << 32;
/// Tenants without a sequence that are remembered; the ones that owe least are forgotten first.
const MAX_DEBTORS: usize = 1024;

/// Where a sequence comes among those of all tenants, smallest first. Of one tenant the order decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Its tenant's counter and the rows before it; zero where there is one tenant.
    share: u128,
    order: Order,
}

impl Place {
    /// The place behind this one by so much of a share.
    pub(super) fn after(self, share: u128) -> Self {
        Self { share: self.share + share, ..self }
    }
}

/// What is known of one tenant.
struct Account {
    name: Option<Arc<str>>,
    weight: u128,
    /// Tokens served, by weight.
    counter: u128,
    /// Sequences here, in whatever state.
    sequences: usize,
    waiting: BTreeMap<Order, Key>,
    /// Sorted.
    running: Vec<Order>,
    /// Its key in the line.
    listed: Option<Place>,
    /// Its counter has changed since it was listed.
    stale: bool,
}

impl Account {
    fn cost(&self, tokens: usize) -> u128 {
        tokens as u128 * TOKEN / self.weight
    }

    fn place(&self, order: Order) -> Place {
        let rows = self.running.partition_point(|&other| other < order);
        Place { share: self.counter + self.cost(ROW_TOKENS * rows), order }
    }
}

/// All tenants that have sequences here, and those that are remembered.
#[derive(Default)]
pub(super) struct Tenants {
    accounts: Vec<Option<Account>>,
    vacant: Vec<TenantKey>,
    names: HashMap<Option<Arc<str>>, TenantKey>,
    /// Those that wait, by the place of the first sequence that does.
    line: BTreeSet<(Place, TenantKey)>,
    /// Those without a sequence, by their counter.
    debtors: BTreeSet<(u128, TenantKey)>,
    /// Those whose place in line must be looked at.
    stale: Vec<TenantKey>,
    num_waiting: usize,
}

impl Tenants {
    /// Whether more than one has sequences here.
    pub(super) fn is_shared(&self) -> bool {
        self.names.len() - self.debtors.len() > 1
    }

    /// Sequences in line.
    pub(super) fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// All sequences in line, in no order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Key> {
        self.accounts.iter().flatten().flat_map(|account| account.waiting.values().copied())
    }

    /// A sequence of the tenant of that name has come.
    pub(super) fn enter(&mut self, name: Option<&Arc<str>>, weight: u32) -> TenantKey {
        let name = name.cloned();
        let tenant = self.names.get(&name).copied().unwrap_or_else(|| {
            let account = Account {
                name: name.clone(),
                weight: 1,
                counter: 0,
                sequences: 0,
                waiting: BTreeMap::new(),
                running: Vec::new(),
                listed: None,
                stale: false,
            };
            let tenant = self.vacant.pop().unwrap_or_else(|| {
                self.accounts.push(None);
                TenantKey(self.accounts.len() as u32 - 1)
            });
            self.accounts[tenant.index()] = Some(account);
            self.names.insert(name, tenant);
            tenant
        });
        if let Some(account) = self.account_mut(tenant) {
            let counter = account.counter;
            account.weight = u128::from(weight.max(1));
            account.sequences += 1;
            self.debtors.remove(&(counter, tenant));
        }
        tenant
    }

    /// A sequence has gone, and is in no list any more.
    pub(super) fn exit(&mut self, tenant: TenantKey) {
        let Some(account) = self.account_mut(tenant) else { return };
        account.sequences -= 1;
        if account.sequences > 0 {
            return;
        }
        let counter = account.counter;
        self.debtors.insert((counter, tenant));
        if self.debtors.len() == self.names.len() {
            // Nobody is here who could have been served instead.
            *self = Self::default();
            return;
        }
        if self.debtors.len() > MAX_DEBTORS
            && let Some((_, least)) = self.debtors.pop_first()
        {
            self.forget(least);
        }
        self.forgive();
    }

    /// A sequence stands in line.
    pub(super) fn wait(&mut self, tenant: TenantKey, order: Order, key: Key) {
        let was_away = self.account(tenant).is_some_and(|account| account.waiting.is_empty());
        let floor = if was_away { self.floor(tenant) } else { 0 };
        let Some(account) = self.account_mut(tenant) else { return };
        account.counter = account.counter.max(floor);
        account.waiting.insert(order, key);
        self.num_waiting += 1;
        self.list(tenant);
    }

    /// It does not any more.
    pub(super) fn stop_waiting(&mut self, tenant: TenantKey, order: Order) {
        let Some(account) = self.account_mut(tenant) else { return };
        let waited = account.waiting.remove(&order).is_some();
        self.num_waiting -= usize::from(waited);
        self.list(tenant);
    }

    /// A sequence has a row.
    pub(super) fn run(&mut self, tenant: TenantKey, order: Order) {
        let Some(account) = self.account_mut(tenant) else { return };
        let at = account.running.partition_point(|&other| other < order);
        account.running.insert(at, order);
        self.list(tenant);
    }

    /// It has none any more.
    pub(super) fn stop_running(&mut self, tenant: TenantKey, order: Order) {
        let Some(account) = self.account_mut(tenant) else { return };
        if let Ok(at) = account.running.binary_search(&order) {
            account.running.remove(at);
        }
        self.list(tenant);
    }

    /// A tenant was served so many tokens. [`settle`](Self::settle) before asking who is next.
    pub(super) fn charge(&mut self, tenant: TenantKey, tokens: usize) {
        let Some(account) = self.account_mut(tenant) else { return };
        account.counter += account.cost(tokens);
        self.touch(tenant);
    }

    /// So many that were charged will not be served.
    pub(super) fn refund(&mut self, tenant: TenantKey, tokens: usize) {
        let Some(account) = self.account_mut(tenant) else { return };
        account.counter = account.counter.saturating_sub(account.cost(tokens));
        self.touch(tenant);
    }

    /// Brings the line up to date with what was charged.
    pub(super) fn settle(&mut self) {
        while let Some(tenant) = self.stale.pop() {
            self.list(tenant);
        }
        self.forgive();
    }

    /// Where a tenant's sequence comes.
    pub(super) fn place(&self, tenant: TenantKey, order: Order) -> Place {
        match self.account(tenant).filter(|_| self.is_shared()) {
            Some(account) => account.place(order),
            None => Place { share: 0, order },
        }
    }

    /// What so many tokens of a tenant count.
    pub(super) fn cost(&self, tenant: TenantKey, tokens: usize) -> u128 {
        self.account(tenant).map_or(0, |account| account.cost(tokens))
    }

    /// The first in line, without those that were passed over: the newest entry of each tenant counts, and all before it.
    pub(super) fn next(&self, passed: &[(TenantKey, Order)]) -> Option<Key> {
        self.line.iter().find_map(|&(_, tenant)| {
            let after = passed.iter().rev().find(|(other, _)| *other == tenant);
            let after = after.map_or(Bound::Unbounded, |&(_, order)| Bound::Excluded(order));
            self.account(tenant)?.waiting.range((after, Bound::Unbounded)).next().map(|(_, &key)| key)
        })
    }

    /// What a tenant that comes back is lifted to: the counter of who is first in line; where nobody waits, of whoever
    /// was served most among those who run.
    fn floor(&self, except: TenantKey) -> u128 {
        let first = self.line.iter().find(|(_, tenant)| *tenant != except);
        if let Some(account) = first.and_then(|&(_, tenant)| self.account(tenant)) {
            return account.counter;
        }
        let other = |account: &&Account| !account.running.is_empty();
        let counters = (0..).map(TenantKey).zip(&self.accounts).filter(|(tenant, _)| *tenant != except);
        counters.filter_map(|(_, account)| account.as_ref()).filter(other).map(|a| a.counter).max().unwrap_or(0)
    }

    /// Forgets those who have gone and owe nothing to those who wait.
    fn forgive(&mut self) {
        if self.debtors.is_empty() {
            return;
        }
        let Some(&(_, first)) = self.line.first() else { return };
        let floor = self.account(first).map_or(0, |account| account.counter);
        while let Some(&(counter, tenant)) = self.debtors.first()
            && counter <= floor
        {
            self.debtors.pop_first();
            self.forget(tenant);
        }
    }

    fn forget(&mut self, tenant: TenantKey) {
        if let Some(account) = self.accounts.get_mut(tenant.index()).and_then(Option::take) {
            self.names.remove(&account.name);
            self.vacant.push(tenant);
        }
    }

    fn touch(&mut self, tenant: TenantKey) {
        if let Some(account) = self.account_mut(tenant)
            && account.listed.is_some()
            && !std::mem::replace(&mut account.stale, true)
        {
            self.stale.push(tenant);
        }
    }

    /// Puts a tenant where it belongs in line, or out of it.
    fn list(&mut self, tenant: TenantKey) {
        let Some(account) = self.account_mut(tenant) else { return };
        account.stale = false;
        let now = account.waiting.first_key_value().map(|(&order, _)| account.place(order));
        let before = std::mem::replace(&mut account.listed, now);
        if before == now {
            return;
        }
        if let Some(place) = before {
            self.line.remove(&(place, tenant));
        }
        if let Some(place) = now {
            self.line.insert((place, tenant));
        }
    }

    fn account(&self, tenant: TenantKey) -> Option<&Account> {
        self.accounts.get(tenant.index())?.as_ref()
    }

    fn account_mut(&mut self, tenant: TenantKey) -> Option<&mut Account> {
        self.accounts.get_mut(tenant.index())?.as_mut()
    }

    /// Checks everything that must hold between two calls; gives how many wait and run.
    #[cfg(test)]
    pub(super) fn audit(&self) -> Result<(usize, usize), String> {
        let accounts = || (0..).map(TenantKey).zip(&self.accounts).filter_map(|(key, a)| Some((key, a.as_ref()?)));
        for (tenant, account) in accounts() {
            let listed = account.listed.is_some_and(|place| self.line.contains(&(place, tenant)));
            if listed == account.waiting.is_empty() {
                return Err(format!("tenant {:?} waits: {}, listed: {listed}", account.name, !listed));
            }
            if (account.sequences == 0) != self.debtors.contains(&(account.counter, tenant)) {
                return Err(format!("tenant {:?} has {} sequences", account.name, account.sequences));
            }
        }
        let count = accounts().count();
        if count != self.names.len() || self.debtors.len() > MAX_DEBTORS {
            return Err(format!("{count} accounts, {} names, {} debtors", self.names.len(), self.debtors.len()));
        }
        let waiting = accounts().map(|(_, account)| account.waiting.len()).sum();
        if waiting != self.num_waiting {
            return Err(format!("{waiting} sequences wait, {} counted", self.num_waiting));
        }
        Ok((waiting, accounts().map(|(_, account)| account.running.len()).sum()))
    }

    /// Tenants that are known, for tests.
    #[cfg(test)]
    pub(super) fn num_known(&self) -> usize {
        self.names.len()
    }
}
