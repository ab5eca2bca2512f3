//! The policies of the jobs folder.

use super::{Caller, Permission, ServiceError, Services};
use crate::policy::{Policies, Policy};

impl Services {
    /// The jobs folder as it is now, so that a changed file counts from the next use.
    ///
    /// # Errors
    /// [`ServiceError::BadPolicies`] with everything that is wrong with it.
    pub async fn policies(&self) -> Result<Policies, ServiceError> {
        let folder = self.config.lifecycle.jobs_dir.clone();
        tokio::task::spawn_blocking(move || Policies::load(&folder))
            .await
            .map_err(|error| ServiceError::Internal(error.into()))?
            .map_err(ServiceError::BadPolicies)
    }

    /// Every policy, by name.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::BadPolicies`]
    pub async fn list_policies(&self, caller: &Caller) -> Result<Vec<Policy>, ServiceError> {
        caller.require(Permission::RetentionView)?;
        Ok(self.policies().await?.policies.into_values().collect())
    }

    /// One policy.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::BadPolicies`]
    pub async fn find_policy(&self, caller: &Caller, name: &str) -> Result<Policy, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let policies = self.policies().await?;
        policies.get(name).cloned().ok_or(ServiceError::NotFound { what: "policy" })
    }
}
