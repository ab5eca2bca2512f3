//! Who calls, and what they may do.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::{ServiceError, Services};
use crate::db::audit::Actor;
use crate::db::tokens::{self, Account};

/// What the service itself asks for. Definitions may ask for further codenames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// See the catalogue.
    ReportsView,
    /// Run reports and follow one's own executions.
    ReportsRun,
    /// Make, change and delete reports over the API.
    ReportsManage,
    /// See everybody's executions and results.
    ExecutionsViewAll,
    /// Cancel and retry everybody's executions, and delete their results.
    ExecutionsCancelAll,
    /// Close accounts: request and cancel erasures.
    UsersManage,
    /// Approve lifecycle work, and replay erasures.
    RetentionApprove,
    /// See policies, holds and what lifecycle runs did.
    RetentionView,
    /// Start, pause, resume and cancel lifecycle runs, and restore archived rows.
    RetentionRun,
    /// Place and release holds.
    HoldsManage,
    /// See the backups.
    BackupsView,
    /// Have a backup proven.
    BackupsVerify,
    /// Make, change and see webhooks and what was delivered to them.
    WebhooksManage,
    /// Pause and resume queues, and drain workers.
    QueuesManage,
    /// Search the audit.
    AuditView,
    /// Make, see and take back everybody's tokens.
    TokensManage,
}

impl Permission {
    /// All.
    pub const ALL: [Self; 16] = [
        Self::ReportsView,
        Self::ReportsRun,
        Self::ReportsManage,
        Self::ExecutionsViewAll,
        Self::ExecutionsCancelAll,
        Self::UsersManage,
        Self::RetentionApprove,
        Self::RetentionView,
        Self::RetentionRun,
        Self::HoldsManage,
        Self::BackupsView,
        Self::BackupsVerify,
        Self::WebhooksManage,
        Self::QueuesManage,
        Self::AuditView,
        Self::TokensManage,
    ];

    /// As in the table of permissions.
    pub const fn codename(self) -> &'static str {
        match self {
            Self::ReportsView => "reports.view",
            Self::ReportsRun => "reports.run",
            Self::ReportsManage => "reports.manage",
            Self::ExecutionsViewAll => "executions.view_all",
            Self::ExecutionsCancelAll => "executions.cancel_all",
            Self::UsersManage => "users.manage",
            Self::RetentionApprove => "retention.approve",
            Self::RetentionView => "retention.view",
            Self::RetentionRun => "retention.run",
            Self::HoldsManage => "holds.manage",
            Self::BackupsView => "backups.view",
            Self::BackupsVerify => "backups.verify",
            Self::WebhooksManage => "webhooks.manage",
            Self::QueuesManage => "queues.manage",
            Self::AuditView => "audit.view",
            Self::TokensManage => "tokens.manage",
        }
    }
}

/// An authenticated caller.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The account; `None` for the operator at the command line.
    pub user_id: Option<i32>,
    /// The token that was shown; `None` where none is needed.
    pub token_id: Option<i64>,
    may_everything: bool,
    permissions: BTreeSet<String>,
    scopes: Option<BTreeSet<String>>,
    /// For audit rows.
    pub actor: Actor,
    /// Trace of the request.
    pub trace_id: String,
}

impl Caller {
    /// Whoever can run the command line with the database's password may do everything, and is
    /// recorded as the system.
    pub fn operator(trace_id: String) -> Self {
        Self {
            user_id: None,
            token_id: None,
            may_everything: true,
            permissions: BTreeSet::new(),
            scopes: None,
            actor: Actor::system(),
            trace_id,
        }
    }

    /// Work that an account has asked for in advance, with the rights that it has now.
    pub fn on_behalf_of(account: Account, trace_id: String) -> Self {
        Self {
            user_id: Some(account.user_id),
            token_id: None,
            may_everything: account.is_superuser,
            permissions: account.permissions.into_iter().collect(),
            scopes: None,
            actor: Actor { user_id: Some(account.user_id), ..Actor::system() },
            trace_id,
        }
    }

    /// Who is signed in to the console, perhaps with a token, whose scopes count.
    pub(super) fn signed_in(
        is_superuser: bool,
        permissions: Vec<String>,
        token: Option<(i64, Option<Vec<String>>)>,
        actor: Actor,
        trace_id: String,
    ) -> Self {
        let (token_id, scopes) = token.unzip();
        let scopes = scopes.flatten();
        Self {
            user_id: actor.user_id,
            token_id,
            may_everything: is_superuser,
            permissions: permissions.into_iter().collect(),
            scopes: scopes.map(|scopes| scopes.into_iter().collect()),
            actor,
            trace_id,
        }
    }

    /// Whether the caller's roles give a permission and the token's scopes let it through.
    pub fn may(&self, codename: &str) -> bool {
        let granted = self.may_everything || self.permissions.contains(codename);
        granted && self.scopes.as_ref().is_none_or(|scopes| scopes.contains(codename))
    }

    /// Whether the caller's token can do less than its owner.
    pub fn is_scoped(&self) -> bool {
        self.scopes.is_some()
    }

    /// Whether there is nothing that the caller may not do.
    pub fn may_everything(&self) -> bool {
        self.may_everything && !self.is_scoped()
    }

    /// Refuses a caller without the permission.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub fn require(&self, permission: Permission) -> Result<(), ServiceError> {
        self.require_codename(permission.codename())
    }

    /// Refuses a caller who may look at no execution at all: who runs reports follows their own,
    /// who sees all need not run any.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub fn require_following(&self) -> Result<(), ServiceError> {
        if self.may(Permission::ExecutionsViewAll.codename()) {
            return Ok(());
        }
        self.require(Permission::ReportsRun)
    }

    /// Refuses a caller without the permission of this codename.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub fn require_codename(&self, codename: &str) -> Result<(), ServiceError> {
        if self.may(codename) {
            return Ok(());
        }
        Err(ServiceError::Forbidden { permission: codename.to_owned() })
    }
}

/// Every token begins so: secret scanners find it, and people see what it is.
pub const TOKEN_PREFIX: &str = "rgs_";
/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 128;

/// The hash under which a token is stored. Tokens are 256 random bits, so a plain hash is enough:
/// there is nothing to guess.
pub fn token_hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl Services {
    /// Finds out who shows a token.
    ///
    /// # Errors
    /// [`ServiceError::Unauthenticated`] for a token that is unknown, revoked or expired, or whose
    /// owner is gone.
    pub async fn authenticate(
        &self,
        token: &str,
        actor: Actor,
        trace_id: String,
    ) -> Result<Caller, ServiceError> {
        if !token.starts_with(TOKEN_PREFIX) || token.len() > MAX_TOKEN_BYTES {
            return Err(ServiceError::Unauthenticated);
        }
        let principal = tokens::find_principal(&self.db, &token_hash(token))
            .await?
            .ok_or(ServiceError::Unauthenticated)?;
        tokens::touch(&self.db, principal.token_id).await?;
        Ok(Caller {
            user_id: Some(principal.user_id),
            token_id: Some(principal.token_id),
            may_everything: principal.is_superuser,
            permissions: principal.permissions.into_iter().collect(),
            scopes: principal.scopes.map(|scopes| scopes.into_iter().collect()),
            actor: Actor { user_id: Some(principal.user_id), ..actor },
            trace_id,
        })
    }
}
