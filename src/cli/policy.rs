//! `registrar policy`: lifecycle policies.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::run::{PolicyRunVerb, run_policy};
use super::{REFUSED, Settings, command_services, note, operator, say, say_json, table};
use crate::policy::{Policy, Treatment};
use crate::retention::check::{CoveredColumn, Finding, Severity};
use crate::service::{ServiceError, Services};

/// Look at, check, preview and run lifecycle policies
#[derive(Debug, Args)]
pub struct PolicyCommand {
    #[command(subcommand)]
    verb: PolicyVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum PolicyVerb {
    /// List the policies of the jobs folder
    #[command(after_help = "Example:\n  registrar policy list")]
    List {
        /// Print JSON, with all that each policy says
        #[arg(long)]
        json: bool,
    },
    /// Check that policies and classification fit the database and each other; exit code 3 if not
    #[command(after_help = "\
Checks names, columns, foreign keys, ages, indexes and conditions; that every column of every table
is classed and its treatment fits; and that no two policies contradict each other.

Example:
  registrar policy check")]
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print every column with its class and what becomes of it; exit code 3 if one is not classed
    #[command(after_help = "Example:\n  registrar policy coverage --table users")]
    Coverage {
        /// Only of this table
        #[arg(long, value_name = "TABLE")]
        table: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Count groups of people who look alike and are fewer than k; exit code 3 if there are any
    #[command(after_help = "Example:\n  registrar policy anonymity anonymize-erased-users --k 3")]
    Anonymity {
        /// A policy of kind `anonymize`
        name: String,
        /// Another k than the policy's
        #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
        k: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Runs(PolicyRunVerb),
}

/// Runs `registrar policy`.
///
/// # Errors
/// Settings or database cannot be used, or a safety rule refuses it.
pub async fn run(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    let settings = &command.settings;
    match command.verb {
        PolicyVerb::List { json } => list(&command_services(settings).await?, json).await,
        PolicyVerb::Check { json } => check(&command_services(settings).await?, json).await,
        PolicyVerb::Coverage { table, json } => {
            coverage(&command_services(settings).await?, table.as_deref(), json).await
        }
        PolicyVerb::Anonymity { name, k, json } => {
            anonymity(&command_services(settings).await?, &name, k, json).await
        }
        PolicyVerb::Runs(verb) => run_policy(verb, settings).await,
    }
}

async fn list(services: &Services, json: bool) -> anyhow::Result<ExitCode> {
    let policies = services.list_policies(&operator()).await?;
    if json {
        say_json(&policies)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = policies.iter().map(row).collect();
    table(&["POLICY", "KIND", "SCHEDULE", "ZONE", "OWNER", "DESCRIPTION"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn row(policy: &Policy) -> Vec<String> {
    let schedule = match &policy.schedule {
        _ if !policy.enabled => "off".to_owned(),
        Some(schedule) => schedule.cron.clone(),
        None => "by hand".to_owned(),
    };
    vec![
        policy.name.to_string(),
        policy.kind.name().to_owned(),
        schedule,
        policy.time_zone.name().to_owned(),
        policy.owner.clone(),
        policy.description.clone(),
    ]
}

async fn check(services: &Services, json: bool) -> anyhow::Result<ExitCode> {
    let findings = match services.check_policies(&operator()).await {
        Ok(findings) => findings,
        // Files that cannot be read are what a check is there to find.
        Err(ServiceError::BadPolicies(error)) => {
            let message = |fault: &crate::policy::PolicyFault| {
                let line = fault.line.map(|line| format!("line {line}: ")).unwrap_or_default();
                format!("{line}{}", fault.expected)
            };
            let finding = |fault: &crate::policy::PolicyFault| Finding {
                severity: Severity::Error,
                file: fault.file.clone(),
                about: fault.key.clone(),
                message: message(fault),
            };
            error.faults().iter().map(finding).collect()
        }
        Err(error) => return Err(error.into()),
    };
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    if json {
        say_json(&findings)?;
    } else {
        for finding in &findings {
            say(finding)?;
        }
        let warnings = findings.len() - errors;
        note(match (errors, warnings) {
            (0, 0) => "Everything fits.".to_owned(),
            _ => format!("{errors} to mend, {warnings} to know."),
        });
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

async fn coverage(services: &Services, only: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let mut columns = services.policy_coverage(&operator()).await?;
    columns.retain(|column| only.is_none_or(|table| column.table == table));
    if json {
        say_json(&columns)?;
    } else {
        let rows: Vec<_> = columns.iter().map(covered).collect();
        table(&["TABLE", "COLUMN", "TYPE", "CLASS", "TREATMENT", "WHY"], &rows)?;
    }
    let unclassed = columns.iter().filter(|column| column.class.is_none()).count();
    if unclassed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    note(format!("{unclassed} columns are not classed: see `registrar policy check`."));
    Ok(ExitCode::from(REFUSED))
}

async fn anonymity(
    services: &Services,
    name: &str,
    k: Option<u32>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let k = k.and_then(std::num::NonZeroU32::new);
    let small = services.count_small_groups(&operator(), name, k).await?;
    if json {
        say_json(&small)?;
    } else {
        say(format!(
            "{} groups are smaller than {}, with {} people in all{}",
            small.groups,
            small.k,
            small.people,
            small.smallest.map(|size| format!("; the smallest has {size}")).unwrap_or_default(),
        ))?;
    }
    Ok(if small.groups == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn covered(column: &CoveredColumn) -> Vec<String> {
    let reason = match &column.treatment {
        Some(Treatment::Keep { reason }) => reason.clone(),
        _ => String::new(),
    };
    vec![
        column.table.clone(),
        column.column.clone(),
        column.data_type.clone(),
        column.class.map_or("UNCLASSED", |class| class.as_str()).to_owned(),
        column.treatment.as_ref().map(Treatment::name).unwrap_or_default().to_owned(),
        reason,
    ]
}
