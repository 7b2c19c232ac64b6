//! Tenants and their shares: what each was served of any ten thousand tokens, whoever else is in line.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::world::Outbox;
use crate::{
    config::EngineConfig,
    engine::{
        executor::{Executor, StepPlan},
        fake::{FakeExecutor, FakeOptions, Random},
        scheduler::{End, Event, Scheduler},
        sequence::Sequence,
    },
    ids::{SequenceId, TokenId},
    params::SamplingParams,
};

/// Tokens over which shares are looked at.
const WINDOW: usize = 10_000;

/// Who comes to the engine, and with what.
#[derive(Clone, Debug)]
struct Tenant {
    weight: u32,
    /// Tokens of a prompt, and of an answer, at the least and at the most.
    prompt: (usize, usize),
    answer: (usize, usize),
    /// Requests that it keeps here, those that run included.
    backlog: usize,
    /// Requests that it sends altogether.
    requests: usize,
}

impl Tenant {
    /// One that has sent all its requests at once.
    fn queued(weight: u32, prompt: (usize, usize), answer: (usize, usize)) -> Self {
        Self { weight, prompt, answer, backlog: 1000, requests: 1000 }
    }
}

/// An engine and its tenants.
struct Shop {
    random: Random,
    tenants: Vec<Tenant>,
    sent: Vec<usize>,
    here: HashMap<SequenceId, usize>,
    /// How many those are, by tenant.
    counts: Vec<usize>,
    scheduler: Scheduler,
    executor: FakeExecutor,
    plan: StepPlan,
    next_id: u64,
    /// Of each step, what every tenant was served, and who had requests in line at its beginning.
    log: Vec<(Vec<usize>, Vec<bool>)>,
}

impl Shop {
    fn new(seed: u64, config: &EngineConfig, tenants: &[Tenant]) -> Self {
        Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            tenants: tenants.to_vec(),
            sent: vec![0; tenants.len()],
            here: HashMap::new(),
            counts: vec![0; tenants.len()],
            scheduler: Scheduler::new(config, 1),
            executor: FakeExecutor::new(config, FakeOptions::default()),
            plan: StepPlan::default(),
            next_id: 0,
            log: Vec::new(),
        }
    }

    fn between(&mut self, (least, most): (usize, usize)) -> usize {
        least + self.random.below(most - least + 1)
    }

    /// Tenants come up to their backlogs.
    fn arrive(&mut self) {
        for tenant in 0..self.tenants.len() {
            let Tenant { weight, prompt, answer, backlog, requests } = self.tenants[tenant].clone();
            while self.sent[tenant] < requests && self.counts[tenant] < backlog {
                let (length, max_tokens) = (self.between(prompt), self.between(answer) as u32);
                self.next_id += 1;
                self.sent[tenant] += 1;
                // Nothing is shared, so that every token is computed.
                let prompt = (0..length).map(|k| TokenId((self.next_id as u32).wrapping_mul(77) % 200 + k as u32 % 7));
                let params =
                    SamplingParams { max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() };
                let id = SequenceId(self.next_id);
                let sequence = Sequence::new(id, prompt.collect(), Arc::new(params), Arc::new(Outbox::new(1 << 20)));
                let name = Some(Arc::from(format!("tenant {tenant}")));
                self.scheduler.add(Sequence { tenant: name, weight, ..sequence }).unwrap();
                self.enter(id, tenant);
            }
        }
    }

    fn enter(&mut self, id: SequenceId, tenant: usize) {
        self.here.insert(id, tenant);
        self.counts[tenant] += 1;
    }

    fn step(&mut self) {
        let (mut served, mut in_line) = (vec![0; self.tenants.len()], self.counts.clone());
        let mut events = Vec::new();
        assert!(self.scheduler.schedule(Instant::now(), &mut self.plan, &mut events), "somebody is here, nobody runs");
        for row in &self.plan.rows {
            if let (0, Some(&tenant)) = (row.num_output_tokens, self.here.get(&row.id)) {
                served[tenant] += row.query.len();
            }
            in_line[self.here[&row.id]] -= 1;
        }
        self.executor.submit(&self.plan).unwrap();
        let output = self.executor.collect().unwrap();
        self.scheduler.apply(output, &mut events).unwrap();
        if self.log.len().is_multiple_of(256) {
            self.scheduler.audit().unwrap();
        }
        for event in events {
            match event {
                Event::Tokens { id, tokens } => served[self.here[&id]] += tokens.len(),
                Event::Ended { id, end, .. } => {
                    assert!(matches!(end, End::Finished(_)));
                    let tenant = self.here.remove(&id).unwrap();
                    self.counts[tenant] -= 1;
                }
                Event::Started { .. } | Event::Prompt { .. } => {}
            }
        }
        self.log.push((served, in_line.into_iter().map(|waiting| waiting > 0).collect()));
    }

    /// So many steps, or until everybody has gone.
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.arrive();
            if self.here.is_empty() {
                return;
            }
            self.step();
        }
    }

    /// Every stretch of the log of a window's tokens in which these tenants always had somebody in line: what each got.
    fn windows(&self, tenants: &[usize]) -> Vec<Vec<usize>> {
        let (mut windows, mut sums, mut start) = (Vec::new(), vec![0; self.tenants.len()], 0);
        for (end, (served, in_line)) in self.log.iter().enumerate() {
            if !tenants.iter().all(|&tenant| in_line[tenant]) {
                sums.fill(0);
                start = end + 1;
                continue;
            }
            sums.iter_mut().zip(served).for_each(|(sum, served)| *sum += served);
            while sums.iter().sum::<usize>() - self.log[start].0.iter().sum::<usize>() >= WINDOW {
                sums.iter_mut().zip(&self.log[start].0).for_each(|(sum, served)| *sum -= served);
                start += 1;
            }
            if sums.iter().sum::<usize>() >= WINDOW {
                windows.push(sums.clone());
            }
        }
        windows
    }

    /// How far any window is from the weights, as a part of a tenant's share.
    fn worst(&self, tenants: &[usize]) -> f64 {
        let windows = self.windows(tenants);
        assert!(windows.len() > 20, "only {} windows", windows.len());
        let weights: f64 = tenants.iter().map(|&tenant| f64::from(self.tenants[tenant].weight)).sum();
        let off = |window: &Vec<usize>| {
            let total: usize = tenants.iter().map(|&tenant| window[tenant]).sum();
            let of = |&tenant: &usize| {
                let share = total as f64 * f64::from(self.tenants[tenant].weight) / weights;
                (window[tenant] as f64 - share).abs() / share
            };
            tenants.iter().map(of).fold(0.0, f64::max)
        };
        windows.iter().map(off).fold(0.0, f64::max)
    }
}

fn config(rows: usize) -> EngineConfig {
    EngineConfig {
        num_blocks: 1 << 14,
        max_num_seqs: rows,
        max_num_batched_tokens: 256,
        max_model_len: 4096,
        max_waiting: 1 << 16,
        enable_prefix_caching: false,
        enable_kv_cache_events: false,
        ..EngineConfig::default()
    }
}

#[test]
fn a_thousand_requests_of_each_of_two_tenants_are_served_by_their_weights() {
    let (short, long, chatty) = ((8, 40), (100, 200), (30, 90));
    let cases = [
        ("alike", [Tenant::queued(1, short, short), Tenant::queued(1, short, short)]),
        ("weights", [Tenant::queued(1, short, short), Tenant::queued(3, short, short)]),
        ("long prompts against long answers", [Tenant::queued(1, long, (4, 16)), Tenant::queued(1, short, chatty)]),
        ("the same by weight", [Tenant::queued(2, long, (4, 16)), Tenant::queued(1, short, chatty)]),
    ];
    for (what, tenants) in cases {
        for rows in [1, 4, 32] {
            let mut shop = Shop::new(7, &config(rows), &tenants);
            shop.run(usize::MAX);
            let worst = shop.worst(&[0, 1]);
            println!("{what}, {rows} rows: {:.1} % off at the worst", 100.0 * worst);
            assert!(worst <= 0.1, "{what}, {rows} rows: {:.1} % off", 100.0 * worst);
        }
    }
}

#[test]
fn one_request_at_a_time_has_its_share_beside_a_thousand_queued() {
    let requests = (8, 40);
    let crowd = Tenant::queued(1, requests, requests);
    let single = Tenant { backlog: 1, requests: 100_000, ..crowd.clone() };
    let mut shop = Shop::new(3, &config(1), &[crowd.clone(), single.clone()]);
    shop.run(20_000);
    // With one row they take turns. Nobody is in line while it runs, so only the crowd must be.
    let windows = shop.windows(&[0]);
    assert!(windows.len() > 20);
    for window in windows {
        assert!(window[0].abs_diff(window[1]) * 10 <= WINDOW, "{window:?}");
    }
    // With several it cannot use half of them, and gets all that it can: a row in every step.
    let mut shop = Shop::new(3, &config(8), &[crowd, single]);
    for step in 0..2000 {
        shop.arrive();
        shop.step();
        let (served, _) = shop.log.last().unwrap();
        assert!(served[1] > 0, "step {step}: {served:?}");
    }
}

#[test]
fn who_comes_while_long_answers_fill_the_batch_does_not_wait_for_their_end() {
    let crowd = Tenant { backlog: 64, ..Tenant::queued(1, (8, 8), (3000, 3000)) };
    let late = Tenant { backlog: 0, ..Tenant::queued(1, (8, 40), (8, 40)) };
    let mut shop = Shop::new(5, &config(16), &[crowd, late]);
    shop.run(500);
    shop.tenants[1].backlog = 200;
    shop.run(1500);
    let worst = shop.worst(&[0, 1]);
    assert!(worst <= 0.1, "{:.1} % off", 100.0 * worst);
    // And what it did not use before is not made up for.
    let before: usize = shop.log[..500].iter().map(|(served, _)| served[0]).sum();
    let after: Vec<usize> =
        (0..2).map(|tenant| shop.log[500..].iter().map(|(served, _)| served[tenant]).sum()).collect();
    assert!(before > 7000 && after[1] < after[0] * 11 / 10, "{before}, then {after:?}");
}

#[test]
fn who_lacks_blocks_beside_one_long_answer_waits_for_about_as_many_tokens_as_that_has_by_then() {
    let hog = Tenant { backlog: 1, requests: 1, ..Tenant::queued(1, (100, 100), (3000, 3000)) };
    let late = Tenant { backlog: 0, requests: 1, ..Tenant::queued(1, (2900, 2900), (16, 16)) };
    for (before, weight) in [(300, 1), (600, 1), (1000, 1), (600, 3)] {
        // Room for either, not for both.
        let config = EngineConfig { num_blocks: 200, ..config(4) };
        let mut shop = Shop::new(1, &config, &[hog.clone(), Tenant { weight, ..late.clone() }]);
        shop.run(before);
        shop.tenants[1].backlog = 1;
        // Its answer, and its prompt twice: D > prompt + (answer + D) / 2.
        let most = before + 2 * 100;
        for step in 0.. {
            shop.run(1);
            let (served, _) = shop.log.last().unwrap();
            if served[1] > 0 {
                break;
            }
            assert_eq!(served[0], 1, "the other one goes on");
            // It is looked at again every now and then.
            assert!(step <= most + 32, "{step} steps beside one that had answered for {before}");
        }
        shop.run(usize::MAX);
        assert_eq!(shop.scheduler.stats().preemptions, 1, "who gave way came back once the other had ended");
    }
}

#[test]
fn tenants_take_turns_where_there_are_blocks_for_one_and_a_half() {
    for (prompt, answer) in [((10, 60), (20, 120)), ((100, 300), (400, 800))] {
        for seed in 0..4 {
            let tenant = |weight| Tenant { backlog: 3, requests: 8, ..Tenant::queued(weight, prompt, answer) };
            let tenants = [tenant(1), tenant(1), tenant(2)];
            let longest = prompt.1 + answer.1;
            let config = EngineConfig { num_blocks: longest * 3 / 2 / 16, ..config(4) };
            let mut shop = Shop::new(seed, &config, &tenants);
            // Steps since each was served, where it has something here.
            let mut waited = [0; 3];
            loop {
                shop.arrive();
                if shop.here.is_empty() {
                    break;
                }
                let here: Vec<_> = shop.counts.iter().map(|&count| count > 0).collect();
                shop.step();
                let (served, _) = shop.log.last().unwrap();
                for (tenant, waited) in waited.iter_mut().enumerate() {
                    *waited = if here[tenant] && served[tenant] == 0 { *waited + 1 } else { 0 };
                    assert!(*waited <= 3 * longest, "seed {seed}: tenant {tenant} waits for {waited} steps");
                }
            }
            let preemptions = shop.scheduler.stats().preemptions;
            println!("seed {seed}: {preemptions} preemptions in {} steps", shop.log.len());
            assert!(preemptions >= 10, "seed {seed}: only {preemptions} preemptions");
        }
    }
}

#[test]
fn random_tenants_with_random_weights_are_served_by_them() {
    let mut looked_at = 0;
    for seed in 0..24 {
        let mut random = Random(u64::wrapping_mul(seed, 0x5851_f42d_4c95_7f2d) + 99);
        let mut pick = |choices: &[usize]| choices[random.below(choices.len())];
        let (num_steady, num_fleeting) = (pick(&[2, 3, 4]), pick(&[0, 2]));
        let mut tenants = Vec::new();
        for _ in 0..num_steady {
            let (prompt, answer) = (pick(&[4, 16, 60]), pick(&[4, 16, 60]));
            let (weight, backlog) = (pick(&[1, 1, 2, 3]) as u32, pick(&[60, 200]));
            tenants.push(Tenant { backlog, ..Tenant::queued(weight, (1, prompt), (1, answer)) });
        }
        // Those who come and go.
        tenants.extend((0..num_fleeting).map(|_| Tenant { backlog: 1, ..Tenant::queued(1, (4, 60), (4, 60)) }));
        let (rows, batched) = (pick(&[1, 3, 8, 24, 60]), pick(&[32, 64, 256]));
        let config = EngineConfig { max_num_batched_tokens: batched, ..config(rows) };
        let mut shop = Shop::new(seed, &config, &tenants);
        shop.run(4000);
        let always: Vec<usize> = (0..tenants.len()).filter(|&tenant| tenants[tenant].backlog > rows).collect();
        if always.len() < 2 || shop.windows(&always).len() <= 20 {
            continue;
        }
        looked_at += 1;
        let worst = shop.worst(&always);
        println!("seed {seed}, {rows} rows of {batched}, {tenants:?}: {:.1} % off", 100.0 * worst);
        assert!(worst <= 0.1, "seed {seed}, {rows} rows of {batched}, {tenants:?}: {:.1} % off", 100.0 * worst);
    }
    assert!(looked_at >= 10, "only {looked_at} of the histories say anything");
}

#[test]
fn priorities_count_among_one_tenants_requests_and_no_further() {
    let one = || Tenant { backlog: 0, ..Tenant::queued(1, (8, 8), (8, 8)) };
    let mut shop = Shop::new(1, &config(1), &[one(), one()]);
    let add = |shop: &mut Shop, tenant: usize, priority: i32| {
        shop.next_id += 1;
        let params = SamplingParams { max_tokens: Some(20), ..SamplingParams::default() };
        let id = SequenceId(shop.next_id);
        let sequence = Sequence::new(id, [TokenId(1); 4].into(), Arc::new(params), Arc::new(Outbox::new(64)));
        let tenant_name = Some(Arc::from(format!("tenant {tenant}")));
        shop.scheduler.add(Sequence { tenant: tenant_name, priority, ..sequence }).unwrap();
        shop.enter(id, tenant);
        id
    };
    let (pushy, later, urgent) = (add(&mut shop, 0, -1000), add(&mut shop, 1, 5), add(&mut shop, 1, 0));
    let mut first_rows = Vec::new();
    while !shop.here.is_empty() {
        shop.step();
        let id = shop.plan.rows[0].id;
        if !first_rows.contains(&id) {
            first_rows.push(id);
        }
    }
    assert_eq!(first_rows, [pushy, urgent, later]);
    let (first, second) = shop.log.iter().take(40).fold((0, 0), |sum, (s, _)| (sum.0 + s[0], sum.1 + s[1]));
    assert!(first.abs_diff(second) < 30, "a priority gains nothing over another tenant: {first} and {second} tokens");
}

#[test]
fn a_tenant_that_has_gone_leaves_nothing_behind_and_its_debt_no_longer_than_it_matters() {
    let steady = Tenant { backlog: 8, requests: usize::MAX, ..Tenant::queued(1, (4, 4), (4, 4)) };
    let guest = |requests| Tenant { backlog: 4, requests, ..steady.clone() };
    let mut tenants = vec![steady.clone()];
    tenants.extend((0..50).map(|k| guest(k % 7 + 1)));
    let mut shop = Shop::new(11, &config(4), &tenants);
    shop.run(2000);
    assert_eq!(shop.scheduler.num_known_tenants(), 1, "fifty have come and gone");
    shop.sent[0] = usize::MAX;
    shop.run(usize::MAX);
    assert_eq!(shop.scheduler.num_known_tenants(), 0);
}

#[test]
fn tenants_that_are_remembered_are_bounded() {
    let mut shop = Shop::new(1, &config(4), &[Tenant::queued(1, (1, 1), (1, 1))]);
    let mut add = |name: String, weight: u32, tokens: usize, max_tokens: u32| {
        shop.next_id += 1;
        let params = SamplingParams { max_tokens: Some(max_tokens), ..SamplingParams::default() };
        let id = SequenceId(shop.next_id);
        let prompt = vec![TokenId(1); tokens].into();
        let sequence = Sequence::new(id, prompt, Arc::new(params), Arc::new(Outbox::new(1 << 20)));
        shop.scheduler.add(Sequence { tenant: Some(name.into()), weight, ..sequence }).unwrap();
        shop.enter(id, 0);
        shop.step();
        shop.scheduler.num_known_tenants()
    };
    // Of so great a weight that what it is served hardly counts: nobody's debt is ever forgiven.
    add("stays".into(), 1 << 16, 1, 4000);
    let most = (0..3000).map(|k| add(format!("{k}"), 1, 40, 1)).max().unwrap();
    assert!((1024..1100).contains(&most), "{most} tenants are remembered");
}
