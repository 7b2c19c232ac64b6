//! What can change while the server runs: on SIGHUP the settings are read again, and certificates also when their files
//! change, since not everybody who renews one can send a signal. What is wrong is logged, and what was in force stays.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{Cli, SetLog, Subcommands, parse_arguments};
use crate::{
    config::Effective,
    error::{Code, Error, Result},
    server::{access::Access, tls::Tls},
};

/// How often the files of certificates are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Settings that hold as soon as they are read.
const AT_ONCE: [&str; 3] = ["api-key", "api-keys-file", "log-level"];

/// What is in force, and can be changed.
pub(super) struct Reload {
    pub(super) effective: Effective,
    pub(super) access: Access,
    pub(super) tls: Option<Tls>,
    pub(super) log: SetLog,
}

impl Reload {
    /// Goes on as long as the server does.
    pub(super) async fn run(mut self, mut hangups: mpsc::Receiver<()>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.tick().await;
        loop {
            let asked = tokio::select! {
                asked = hangups.recv() => {
                    if asked.is_none() {
                        return self.only_look(look).await;
                    }
                    true
                }
                _ = look.tick() => false,
            };
            self = self.read(asked).await;
        }
    }

    /// Where nobody can ask.
    async fn only_look(mut self, mut look: tokio::time::Interval) {
        loop {
            look.tick().await;
            self = self.read(false).await;
        }
    }

    /// Files are read beside the tasks that stream.
    async fn read(mut self, asked: bool) -> Self {
        let read = spawn_blocking(move || {
            self.certificates(asked);
            if asked && let Err(error) = self.settings() {
                tracing::error!(%error, "the settings were read again and are no good: what was in force stays");
            }
            self
        });
        match read.await {
            Ok(this) => this,
            // A panic in there took everything along; what is in force stays so until the end.
            Err(error) => {
                tracing::error!(%error, "settings are not read again any more");
                std::future::pending().await
            }
        }
    }

    fn certificates(&self, asked: bool) {
        let Some(tls) = &self.tls else { return };
        match tls.reload() {
            Ok(true) => tracing::info!("new connections get the new certificate"),
            Ok(false) if asked => tracing::info!("the certificate is the same"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the certificate was not changed: the old one stays in force"),
        }
    }

    /// All or nothing.
    fn settings(&mut self) -> Result<()> {
        let wrong = |error: clap::Error| {
            let said = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            Error::new(Code::InvalidArgument, said)
        };
        let (Cli { command, log }, effective) = parse_arguments().map_err(wrong)?;
        let Subcommands::Serve(args) = command else { return Ok(()) };
        let tenants = args.access.tenants()?;
        let differing = effective.differing(&self.effective);
        let (now, later): (Vec<_>, Vec<_>) = differing.into_iter().partition(|name| AT_ONCE.contains(name));
        if tenants.is_none() && self.access.asks() {
            let why = "without keys everybody could call: that needs a restart";
            return Err(Error::new(Code::FailedPrecondition, why));
        }
        (self.log)(&log)?;
        let changes = tenants.map(|tenants| self.access.replace(tenants)).unwrap_or_default();
        tracing::info!(
            settings = ?now,
            tenants_added = ?changes.added,
            tenants_removed = ?changes.removed,
            tenants_changed = ?changes.changed,
            "settings were read again"
        );
        if !later.is_empty() {
            tracing::warn!(settings = ?later, "these have changed and hold after a restart");
        }
        // What needs a restart is said each time until there is one.
        for entry in &mut self.effective.entries {
            let new = effective.entries.iter().find(|new| new.name == entry.name && AT_ONCE.contains(&&*new.name));
            if let Some(new) = new {
                *entry = new.clone();
            }
        }
        Ok(())
    }
}
