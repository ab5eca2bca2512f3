//! `registrar schedule`: what runs by itself.

use std::process::ExitCode;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Settings, command_services, note, operator, say_json, table};
use crate::db::schedules::Schedule;

/// See, pause, resume and fire schedules of reports
///
/// Schedules are made over HTTP with a token of their owner's: `POST /v1/schedules`.
#[derive(Debug, Args)]
pub struct ScheduleCommand {
    #[command(subcommand)]
    verb: ScheduleVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum ScheduleVerb {
    /// List schedules by name
    #[command(after_help = "Example:\n  registrar schedule list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show when a schedule is due, in its zone and in UTC
    #[command(after_help = "Example:\n  registrar schedule next weekly-ranking --count 10")]
    Next {
        /// Its name
        name: String,
        /// How many times
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=100))]
        count: u8,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add an occurrence that is due now
    #[command(after_help = "Example:\n  registrar schedule run weekly-ranking")]
    Run {
        /// Its name
        name: String,
    },
    /// Fire due times of the past that have started nothing
    #[command(after_help = "\
Example:
  registrar schedule backfill weekly-ranking --from 2026-01-01T00:00:00Z --until 2026-02-01T00:00:00Z")]
    Backfill {
        /// Its name
        name: String,
        /// The first moment
        #[arg(long, value_name = "TIME")]
        from: DateTime<Utc>,
        /// The moment after the last; not in the future
        #[arg(long, value_name = "TIME")]
        until: DateTime<Utc>,
    },
    /// Pause a schedule; what it has started goes on
    #[command(after_help = "Example:\n  registrar schedule pause weekly-ranking")]
    Pause {
        /// Its name
        name: String,
    },
    /// Let a paused schedule go on with its next time
    #[command(after_help = "Example:\n  registrar schedule resume weekly-ranking")]
    Resume {
        /// Its name
        name: String,
    },
}

/// Runs `registrar schedule`.
///
/// # Errors
/// Settings or database cannot be used, or there is no such schedule.
pub async fn run(command: ScheduleCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let caller = operator();
    let of = |name: &str| format!("schedule `{name}`");
    match command.verb {
        ScheduleVerb::List { json: as_json } => {
            let schedules = services.list_schedules(&caller).await?;
            if as_json { say_json(&schedules)? } else { list(&schedules)? }
        }
        ScheduleVerb::Next { name, count, json: as_json } => {
            let upcoming =
                services.upcoming(&caller, &name, count.into()).await.with_context(|| of(&name))?;
            let rows: Vec<_> = upcoming
                .times
                .iter()
                .map(|time| {
                    let local = time.with_timezone(&upcoming.zone).format("%a %F %T %Z");
                    vec![local.to_string(), time.format("%F %TZ").to_string()]
                })
                .collect();
            if as_json {
                say_json(&json!({ "time_zone": upcoming.zone.name(), "times": upcoming.times }))?;
            } else {
                table(&[upcoming.zone.name(), "UTC"], &rows)?;
            }
        }
        ScheduleVerb::Run { name } => {
            services.run_schedule(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} is due now; a worker submits it."));
        }
        ScheduleVerb::Backfill { name, from, until } => {
            let added = services.backfill_schedule(&caller, &name, from, until).await;
            let added = added.with_context(|| of(&name))?;
            note(format!("{added} occurrences of {name} are due; a worker submits them."));
        }
        ScheduleVerb::Pause { name } => {
            services.pause_schedule(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} is paused."));
        }
        ScheduleVerb::Resume { name } => {
            let schedule =
                services.resume_schedule(&caller, &name).await.with_context(|| of(&name))?;
            note(format!("{name} goes on; next: {}", time(schedule.next_due_at)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "never".to_owned(), |at| at.format("%F %TZ").to_string())
}

fn list(schedules: &[Schedule]) -> anyhow::Result<()> {
    let rows: Vec<_> = schedules
        .iter()
        .map(|schedule| {
            let state = match &schedule.pause_reason {
                Some(reason) => format!("paused ({reason})"),
                None => "active".to_owned(),
            };
            vec![
                schedule.name.clone(),
                schedule.report.clone(),
                schedule.owner_id.to_string(),
                schedule.timing.cron.clone(),
                schedule.timing.time_zone.clone(),
                time(schedule.next_due_at),
                state,
            ]
        })
        .collect();
    table(&["SCHEDULE", "REPORT", "OWNER", "CRON", "ZONE", "NEXT", "STATE"], &rows)
}
