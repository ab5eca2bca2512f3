//! `registrar token`: bearer tokens for the API.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{Settings, command_services, note, operator, say, say_json, table};
use crate::service::tokens::{MAX_LISTED, TokenFilter, TokenOrder};

/// Make, list and take back bearer tokens of the API
#[derive(Debug, Args)]
pub struct TokenCommand {
    #[command(subcommand)]
    verb: TokenVerb,

    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Make a token and print it: the only time that it can be read
    #[command(after_help = "\
Examples:
  registrar token create --user ana --name laptop
  registrar token create --user ana --name nightly --scope reports.run --expires-after-days 90")]
    Create {
        /// Username of the owner, whose rights the token carries
        #[arg(long)]
        user: String,
        /// What it is for
        #[arg(long)]
        name: String,
        /// Limit it to a permission; may be repeated
        #[arg(long = "scope", value_name = "PERMISSION")]
        scopes: Vec<String>,
        /// Days until it expires
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i32).range(1..=3650))]
        expires_after_days: Option<i32>,
    },
    /// List tokens, newest first
    #[command(after_help = "Example:\n  registrar token list --user ana")]
    List {
        /// Only of this user
        #[arg(long)]
        user: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a token back, at once
    #[command(after_help = "Example:\n  registrar token revoke rgs_1a2b3c4d")]
    Revoke {
        /// Its visible beginning, as `token list` shows it
        prefix: String,
    },
}

/// Runs `registrar token`.
///
/// # Errors
/// Settings or database cannot be used, or the account or token does not exist.
pub async fn run(command: TokenCommand) -> anyhow::Result<ExitCode> {
    let services = command_services(&command.settings).await?;
    match command.verb {
        TokenVerb::Create { user, name, scopes, expires_after_days } => {
            let order = TokenOrder {
                owner: Some(user.clone()),
                name,
                scopes: (!scopes.is_empty()).then_some(scopes),
                expires_after_days,
            };
            let created = services
                .create_token(&operator(), order)
                .await
                .with_context(|| format!("make a token for `{user}`"))?;
            note("Keep this token: it cannot be shown again.");
            say(created.token)?;
        }
        TokenVerb::List { user, json } => {
            let filter =
                TokenFilter { username: user, limit: MAX_LISTED, ..TokenFilter::default() };
            let tokens = services.list_tokens(&operator(), filter).await?;
            if json {
                say_json(&tokens)?;
            } else {
                list(&tokens)?;
            }
        }
        TokenVerb::Revoke { prefix } => {
            services
                .revoke_token(&operator(), &prefix)
                .await
                .with_context(|| format!("take back `{prefix}`"))?;
            note(format!("{prefix} is no longer valid."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(tokens: &[crate::db::tokens::TokenRow]) -> anyhow::Result<()> {
    let day = |at: Option<chrono::DateTime<chrono::Utc>>| {
        at.map(|at| at.format("%Y-%m-%d").to_string()).unwrap_or_default()
    };
    let rows: Vec<_> = tokens
        .iter()
        .map(|token| {
            vec![
                token.prefix.clone(),
                token.username.clone(),
                token.name.clone(),
                token.scopes.as_ref().map(|scopes| scopes.join(",")).unwrap_or_default(),
                day(Some(token.created_at)),
                day(token.expires_at),
                day(token.last_used_at),
                day(token.revoked_at),
            ]
        })
        .collect();
    let headings =
        ["TOKEN", "USER", "NAME", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "REVOKED"];
    table(&headings, &rows)
}
