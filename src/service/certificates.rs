//! Certificates: made when a run ends, shown, and compared with everything else.

use secrecy::ExposeSecret;
use serde_json::json;
use sqlx::PgConnection;

use super::{Caller, Permission, ServiceError, Services};
use crate::db::certificates::{self, CertificateRow};
use crate::db::erasures;
use crate::policy::Kind;
use crate::retention::certificate::{
    self, CertificateError, ExpectedHead, NewCertificate, Verification, record_of_run,
};
use crate::retention::keyring::{KeyError, Keyring};
use crate::retention::run;
use crate::retention::treat::declared_treats;

/// Runs sealed afterwards in one go.
const BATCH: i64 = 100;

impl Services {
    /// Seals a run as it stands in the caller's transaction, which has ended it or taken it up
    /// again and holds its row's lock. `None`: this installation has no keys, so that nothing can
    /// be sealed; housekeeping does so when it has.
    ///
    /// # Errors
    /// [`CertificateError`]
    pub async fn seal_run(
        &self,
        connection: &mut PgConnection,
        id: i64,
    ) -> Result<Option<CertificateRow>, CertificateError> {
        self.seal(connection, id, false).await
    }

    async fn seal(
        &self,
        connection: &mut PgConnection,
        id: i64,
        is_late: bool,
    ) -> Result<Option<CertificateRow>, CertificateError> {
        let keyring = match self.keyring() {
            Ok(keyring) => keyring,
            Err(error) => {
                tracing::warn!(run.id = id, %error, "run {id} cannot be certified yet");
                return Ok(None);
            }
        };
        let Some(found) = run::find(&mut *connection, id).await? else { return Ok(None) };
        let tables = run::tables_of(&mut *connection, id).await?;
        let erasures_asked = erasures::count_asked_by(&mut *connection, id).await?;
        // Who answers for it; another version of the policy may have another owner.
        let policies = self.policies().await.ok();
        let policy = policies.as_ref().and_then(|policies| policies.get(&found.policy));
        let policy = policy.filter(|policy| policy.digest() == found.policy_digest);
        let treated =
            policies.as_ref().zip(policy).and_then(|(policies, policy)| match &policy.kind {
                Kind::AnonymizeRows(rows) => Some(declared_treats(&policies.classification, rows)),
                _ => None,
            });
        let new = NewCertificate {
            subject: format!("run-{id}"),
            kind: &found.kind,
            policy_digest: &found.policy_digest,
            record: record_of_run(&found, &tables, erasures_asked),
            findings: json!({
                "owner": policy.map(|policy| policy.owner.as_str()),
                "sealed_late": is_late,
                "treated": treated,
            }),
            ledger: run::purges_of(&mut *connection, id).await?,
        };
        Ok(Some(certificate::seal(connection, &keyring, new).await?))
    }

    /// Copies certificates to the store now; what fails is copied by housekeeping.
    pub async fn store_certificates(&self) {
        let Ok(keyring) = self.keyring() else { return };
        if let Err(error) = certificate::store_pending(&self.db, &self.store, &keyring).await {
            tracing::warn!(
                error = format!("{:#}", anyhow::Error::from(ServiceError::from(error))),
                "certificates are not in the store yet"
            );
        }
    }

    /// Seals runs that ended without a certificate, each once, and copies certificates to the
    /// store. Returns how many runs were sealed.
    ///
    /// # Errors
    /// [`ServiceError`]
    pub async fn seal_unsealed(&self) -> Result<u64, ServiceError> {
        if !self.can_erase() {
            return Ok(0);
        }
        let mut sealed = 0;
        loop {
            let runs = certificates::list_unsealed_runs(&self.db, BATCH).await?;
            let size = runs.len() as i64;
            for id in runs {
                let mut tx = self.db.begin().await?;
                // The row's lock first, as everybody does who ends a run.
                let is_final = run::lock(&mut tx, id).await?.is_some_and(|s| s.is_final());
                if is_final
                    && !certificates::is_run_sealed(&mut tx, id).await?
                    && self.seal(&mut tx, id, true).await?.is_some()
                {
                    sealed += 1;
                }
                tx.commit().await?;
            }
            if size < BATCH {
                break;
            }
        }
        let keyring = self.keyring()?;
        certificate::store_pending(&self.db, &self.store, &keyring).await?;
        Ok(sealed)
    }

    /// The certificate about something: `erasure-12` or `run-7`.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::Refused`] for a run
    /// that has none yet, or the database's.
    pub async fn certificate(
        &self,
        caller: &Caller,
        subject: &str,
    ) -> Result<CertificateRow, ServiceError> {
        caller.require(Permission::RetentionView)?;
        if let Some(found) = certificates::find(&self.db, subject).await? {
            return Ok(found);
        }
        let run_id = subject.strip_prefix("run-").and_then(|id| id.parse().ok());
        if let Some(id) = run_id
            && let Some(run) = run::find(&mut *self.db.acquire().await?, id).await?
        {
            let message = if run.status.is_final() {
                match self.keyring() {
                    Ok(_) => format!("run {id} has ended, and is certified within a minute"),
                    Err(error) => format!("run {id} is not certified: {error}"),
                }
            } else {
                format!("run {id} is {}: its certificate is made when it ends", run.status)
            };
            return Err(ServiceError::refused("no_certificate_yet", message));
        }
        Err(ServiceError::NotFound { what: "certificate" })
    }

    /// Looks whether certificates, their copies, the heads, the ledger and the records of erasures
    /// and runs are as they were sealed, and whether the chain holds a head that was written down.
    ///
    /// # Errors
    /// [`ServiceError`]
    pub async fn verify_certificates(
        &self,
        caller: &Caller,
        expected: Option<&ExpectedHead>,
    ) -> Result<Verification, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let keyring = self.keyring()?;
        Ok(certificate::verify(&self.db, &self.store, &keyring, expected).await?)
    }

    pub(super) fn keyring(&self) -> Result<Keyring, KeyError> {
        let config = &self.config.erasure;
        let keys = config.keys.iter().map(|(id, key)| (id.as_str(), key.expose_secret()));
        Keyring::new(&config.active_key, keys)
    }
}
