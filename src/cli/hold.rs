//! `registrar hold`: legal holds.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args, Subcommand};

use super::{Settings, command_services, note, operator, say, say_json, table};
use crate::api::HoldResource;
use crate::db::holds::{HoldFilter, HoldRow};
use crate::policy::Condition;
use crate::retention::hold::Placement;
use crate::retention::sql::TableName;
use crate::service::holds::Reason;

/// Place, release and list legal holds
#[derive(Debug, Args)]
pub struct HoldCommand {
    #[command(subcommand)]
    verb: HoldVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum HoldVerb {
    /// Keep rows from being archived, anonymized and deleted; prints the hold's number
    #[command(after_help = "\
Examples:
  registrar hold place --subject users --key 1042 --reason 'Appeal 2026/17'
  registrar hold place --table orders --key 7 --key 8 --reason 'Audit' --until 2027-12-31T00:00:00Z
  registrar hold place --table orders --where \"state = 'disputed'\" --reason 'Disputes'
  registrar hold place --table audit_logs --reason 'Investigation'")]
    Place(PlaceArgs),
    /// End a hold; it stays on record
    #[command(
        after_help = "Example:\n  registrar hold release 3 --reason 'The appeal was decided'"
    )]
    Release {
        /// The hold
        id: i64,
        /// Why
        #[arg(long)]
        reason: Reason,
    },
    /// Bring back the holds of the store, and release those that were: after a restore
    #[command(after_help = "Example:\n  registrar hold replay")]
    Replay,
    /// List holds, newest first
    #[command(after_help = "Example:\n  registrar hold list --in-force")]
    List {
        /// Only those in force
        #[arg(long)]
        in_force: bool,
        /// Only those of this table
        #[arg(long, value_name = "TABLE")]
        table: Option<TableName>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["table", "subject"]))]
struct PlaceArgs {
    /// Rows of this table: those with --key, those that match --where, or all
    #[arg(long, value_name = "TABLE")]
    table: Option<TableName>,
    /// A person of this table of people, by --key, with every row that is theirs
    #[arg(long, value_name = "TABLE", requires = "keys")]
    subject: Option<TableName>,
    /// A primary key; its columns separated by commas. Several for several rows
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// A condition in SQL over the table's columns
    #[arg(long = "where", value_name = "SQL", conflicts_with_all = ["keys", "subject"])]
    condition: Option<Condition>,
    /// Why
    #[arg(long)]
    reason: Reason,
    /// When the hold ends by itself, like 2027-12-31T00:00:00Z
    #[arg(long, value_name = "INSTANT")]
    until: Option<DateTime<Utc>>,
}

impl PlaceArgs {
    fn placement(&self) -> anyhow::Result<Placement> {
        let mut keys: Vec<Vec<String>> =
            self.keys.iter().map(|key| key.split(',').map(str::to_owned).collect()).collect();
        Ok(match (&self.table, &self.subject, &self.condition) {
            (_, Some(people), _) => {
                let key = keys.pop().filter(|_| keys.is_empty());
                let key = key.ok_or_else(|| anyhow::anyhow!("--subject takes one --key"))?;
                Placement::Subject { table: people.clone(), key }
            }
            (Some(table), None, Some(condition)) => {
                Placement::Query { table: table.clone(), condition: condition.clone() }
            }
            (Some(table), None, None) if keys.is_empty() => {
                Placement::Table { table: table.clone() }
            }
            (Some(table), None, None) => Placement::Rows { table: table.clone(), keys },
            (None, None, _) => anyhow::bail!("--table or --subject must be given"),
        })
    }
}

/// Runs `registrar hold`.
///
/// # Errors
/// Settings or database cannot be used, or the hold would keep nothing.
pub async fn run(command: HoldCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        HoldVerb::Place(args) => {
            let placement = args.placement()?;
            let hold =
                services.place_hold(&operator(), placement, &args.reason, args.until).await?;
            note(format!("Hold {} is in force: no run touches what it is over.", hold.id));
            say(hold.id)?;
        }
        HoldVerb::Release { id, reason } => {
            services.release_hold(&operator(), id, &reason).await?;
            note(format!("Hold {id} is released."));
        }
        HoldVerb::Replay => {
            let replayed = services.replay_holds(&operator()).await?;
            note(format!(
                "{} holds in the store: {} placed again, {} released again.",
                replayed.found, replayed.placed, replayed.released
            ));
            for path in &replayed.broken {
                note(format!("{path} cannot be opened (backup.identity_file) or read."));
            }
            if !replayed.broken.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        HoldVerb::List { in_force, table, limit, json } => {
            let table = table.map(|table| table.plain());
            let filter = HoldFilter {
                in_force: in_force.then_some(true),
                table_name: table.as_deref(),
                before: None,
            };
            let holds = services.list_holds(&operator(), filter, limit).await?;
            if json {
                let holds: Vec<_> = holds.into_iter().map(HoldResource::from).collect();
                say_json(&holds)?;
            } else {
                list(&holds)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(holds: &[HoldRow]) -> anyhow::Result<()> {
    let day = |at: DateTime<Utc>| at.format("%Y-%m-%d").to_string();
    let rows: Vec<_> = holds
        .iter()
        .map(|hold| {
            let state = match hold.released_at {
                Some(at) => format!("released {}", day(at)),
                None if hold.in_force => "in force".to_owned(),
                None => "ended".to_owned(),
            };
            vec![
                hold.id.to_string(),
                hold.scope.clone(),
                hold.table_name.clone(),
                over(hold),
                state,
                day(hold.placed_at),
                hold.until.map(day).unwrap_or_default(),
                hold.reason.clone(),
            ]
        })
        .collect();
    table(&["ID", "SCOPE", "TABLE", "OVER", "STATE", "PLACED", "UNTIL", "REASON"], &rows)
}

fn over(hold: &HoldRow) -> String {
    let keys = hold.keys.as_ref().and_then(serde_json::Value::as_array);
    match (keys.map(Vec::as_slice), &hold.condition) {
        (Some([key]), _) => {
            let values = key.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
            values.collect::<Vec<_>>().join(",")
        }
        (Some(keys), _) => format!("{} rows", keys.len()),
        (None, Some(condition)) => condition.clone(),
        (None, None) => String::new(),
    }
}
