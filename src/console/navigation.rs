//! Where one can go: what the caller may not see is not offered. (The services refuse it too.)

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::Console;
use super::request::SignedIn;
use super::response::see_other;
use crate::service::{Caller, Permission};

/// An entry.
#[derive(Debug, Serialize)]
pub struct Entry {
    href: &'static str,
    label: &'static str,
    is_here: bool,
}

/// The entries for a caller.
pub fn entries(caller: &Caller, place: &str) -> Vec<Entry> {
    let may = |permission: Permission| caller.may(permission.codename());
    let follows = caller.require_following().is_ok();
    let all = [
        ("/reports", "Reports", may(Permission::ReportsView) || may(Permission::ReportsRun)),
        ("/executions", "Executions", follows),
        ("/schedules", "Schedules", follows),
        ("/overview", "Overview", may(Permission::ExecutionsViewAll)),
        ("/queues", "Queues", may(Permission::ExecutionsViewAll)),
        ("/policies", "Policies", may(Permission::RetentionView)),
        ("/runs", "Runs", may(Permission::RetentionView)),
        ("/archives", "Archives", may(Permission::RetentionView)),
        ("/holds", "Holds", may(Permission::RetentionView)),
        ("/erasures", "Erasures", may(Permission::UsersManage)),
        ("/backups", "Backups", may(Permission::BackupsView)),
        ("/webhooks", "Webhooks", may(Permission::WebhooksManage)),
        ("/tokens", "Tokens", follows || may(Permission::TokensManage)),
        ("/audit", "Audit", may(Permission::AuditView)),
    ];
    let shown = all.into_iter().filter(|(_, _, is_shown)| *is_shown);
    shown.map(|(href, label, _)| Entry { href, label, is_here: href == place }).collect()
}

/// The first page that the caller may see.
pub async fn home(State(_): State<Console>, SignedIn(session): SignedIn) -> Response {
    let first = entries(&session.caller, "").first().map_or("/reports", |entry| entry.href);
    see_other(first)
}
