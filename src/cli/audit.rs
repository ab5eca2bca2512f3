//! `registrar audit`: who did what.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use super::{Settings, command_services, operator, say_json, table};
use crate::db::audit::AuditFilter;

/// Search the audit
#[derive(Debug, Args)]
pub struct AuditCommand {
    #[command(subcommand)]
    verb: AuditVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum AuditVerb {
    /// List what was done, newest first; never the values that rows had
    #[command(after_help = "\
Examples:
  registrar audit list --action queue.paused
  registrar audit list --entity-type report_executions --entity-id 71")]
    List {
        /// Only what the user with this number did
        #[arg(long, value_name = "NUMBER")]
        user_id: Option<i32>,
        /// Only this action
        #[arg(long)]
        action: Option<String>,
        /// Only what was done to these
        #[arg(long, value_name = "TABLE")]
        entity_type: Option<String>,
        /// Only what was done to this one
        #[arg(long, value_name = "NUMBER")]
        entity_id: Option<i64>,
        /// Not before this instant
        #[arg(long, value_name = "INSTANT")]
        from: Option<DateTime<Utc>>,
        /// Before this instant
        #[arg(long, value_name = "INSTANT")]
        until: Option<DateTime<Utc>>,
        /// Only rows before the one with this number: the last of the page before
        #[arg(long, value_name = "NUMBER")]
        before: Option<i64>,
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=200))]
        limit: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs `registrar audit`.
///
/// # Errors
/// Settings or database cannot be used.
pub async fn run(command: AuditCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    let AuditVerb::List {
        user_id,
        action,
        entity_type,
        entity_id,
        from,
        until,
        before,
        limit,
        json,
    } = command.verb;
    let filter = AuditFilter { user_id, action, entity_type, entity_id, from, until, before };
    let rows = services.search_audit(&operator(), &filter, limit).await?;
    if json {
        say_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            vec![
                row.id.to_string(),
                row.created_at.map(|at| at.format("%F %TZ").to_string()).unwrap_or_default(),
                text(row.user_id.map(i64::from)),
                row.action.clone(),
                row.entity_type.clone(),
                text(row.entity_id),
            ]
        })
        .collect();
    table(&["ROW", "AT", "USER", "ACTION", "THING", "NUMBER"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
