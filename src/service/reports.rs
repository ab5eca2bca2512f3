//! The catalogue: what can be run, and bringing templates into it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::executions::{report_failed, typed};
use super::{Caller, Permission, ServiceError, Services};
use crate::db::audit::{self, Actor};
use crate::db::definitions::{self, Deactivated, NewDefinition, Source, Stored};
use crate::report::choices::{self, Choices};
use crate::report::definition::{Definition, DefinitionFault, Slug, load_templates};
use crate::report::error::ReportError;
use crate::report::parameters::BoundParameters;

/// A report of the catalogue.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// The current definition.
    pub definition: Definition,
    /// Its version.
    pub version: i32,
    /// What may be chosen, by parameter that has a query for it. Only where one report is shown,
    /// and its database answers.
    pub choices: BTreeMap<String, Arc<Choices>>,
}

/// What syncing a template did.
#[derive(Debug, serde::Serialize)]
pub struct Synced {
    /// The template.
    pub slug: String,
    /// Its version in the database.
    pub version: i32,
    /// Whether it was new or changed.
    pub outcome: Stored,
}

/// What validating a template found.
#[derive(Debug, serde::Serialize)]
pub struct Validated {
    /// The template.
    pub slug: String,
    /// What is wrong with it; empty for a good one.
    pub problems: Vec<String>,
}

/// Templates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplatesError {
    /// Files are missing or wrong; each problem names its file.
    #[error("{}", .0.join("\n"))]
    Files(Vec<String>),
    /// The database's.
    #[error("cannot store the templates")]
    Database(#[from] sqlx::Error),
}

impl Services {
    /// Lists the reports that the caller may run.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_reports(&self, caller: &Caller) -> Result<Vec<CatalogueEntry>, ServiceError> {
        require_catalogue(caller)?;
        let mut entries = Vec::new();
        for stored in definitions::list_active(&self.db).await? {
            let definition = typed(&stored)?;
            if definition.permission().is_none_or(|permission| caller.may(permission)) {
                let (version, choices) = (stored.version, BTreeMap::new());
                entries.push(CatalogueEntry { definition, version, choices });
            }
        }
        Ok(entries)
    }

    /// Finds a report that the caller may run.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`] and [`ServiceError::NotFound`]
    pub async fn show_report(
        &self,
        caller: &Caller,
        slug: &str,
    ) -> Result<CatalogueEntry, ServiceError> {
        require_catalogue(caller)?;
        let mut connection = self.db.acquire().await?;
        let (stored, definition) = self.runnable(&mut connection, caller, slug).await?;
        drop(connection);
        let choices = self.choices(&definition).await;
        Ok(CatalogueEntry { definition, version: stored.version, choices })
    }

    /// Stores a report under a slug, new or changed, once the server has checked it as the report
    /// role. Each change of its content is a version.
    ///
    /// # Errors
    /// Forbidden; [`ServiceError::BadDefinition`] with everything that is wrong;
    /// [`ServiceError::ReportFails`] where the server refuses the query; [`ServiceError::Refused`]
    /// where the slug is a template's.
    pub async fn put_report(
        &self,
        caller: &Caller,
        slug: Slug,
        spec: &Value,
        sql: &str,
    ) -> Result<(CatalogueEntry, Stored), ServiceError> {
        caller.require(Permission::ReportsManage)?;
        if has_nul(spec) || sql.contains('\0') {
            let expected = "must be without the character U+0000".to_owned();
            return Err(ServiceError::BadField { field: "/", expected });
        }
        let definition = Definition::from_json(slug, spec, sql)
            .map_err(|error| ServiceError::BadDefinition(error.faults().to_vec()))?;
        self.require_runnable(&definition).await?;
        let mut tx = self.db.begin().await?;
        let source = Source::Api { by: caller.user_id };
        let stored = store(&mut tx, &caller.actor, &definition, source).await?;
        let Some(Synced { version, outcome, .. }) = stored else {
            return Err(is_template(definition.slug().as_str()));
        };
        tx.commit().await?;
        let choices = self.choices(&definition).await;
        Ok((CatalogueEntry { definition, version, choices }, outcome))
    }

    /// Takes a report out of the catalogue, and answers with what it was. Its executions and their
    /// results stay; its slug can be used again.
    ///
    /// # Errors
    /// Forbidden, not found; [`ServiceError::Refused`] where it is a template's.
    pub async fn delete_report(
        &self,
        caller: &Caller,
        slug: &str,
    ) -> Result<CatalogueEntry, ServiceError> {
        caller.require(Permission::ReportsManage)?;
        let mut tx = self.db.begin().await?;
        let id = match definitions::deactivate(&mut tx, slug).await? {
            Deactivated::Done(id) => id,
            Deactivated::IsTemplate => return Err(is_template(slug)),
            Deactivated::Missing => return Err(ServiceError::NotFound { what: "report" }),
        };
        let stored = definitions::find_by_slug(&mut tx, slug)
            .await?
            .ok_or(ServiceError::NotFound { what: "report" })?;
        let definition = typed(&stored)?;
        let event = audit::Event {
            action: "report.deleted",
            entity_type: "report_definitions",
            entity_id: Some(i64::from(id)),
            details: json!({ "slug": slug, "trace_id": caller.trace_id }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        tx.commit().await?;
        Ok(CatalogueEntry { definition, version: stored.version, choices: BTreeMap::new() })
    }

    /// Refuses a report that the server would not run, or whose columns are described wrongly.
    async fn require_runnable(&self, definition: &Definition) -> Result<(), ServiceError> {
        let problems =
            self.validate(definition).await.map_err(|error| match report_failed(error) {
                ServiceError::BadField { expected, .. } => {
                    ServiceError::BadField { field: "/query", expected }
                }
                error => error,
            })?;
        if problems.is_empty() {
            return Ok(());
        }
        let fault = |expected| DefinitionFault {
            file: "query".to_owned(),
            position: None,
            key: String::new(),
            expected,
        };
        Err(ServiceError::BadDefinition(problems.into_iter().map(fault).collect()))
    }

    /// A report is shown without its choices rather than not at all.
    async fn choices(&self, definition: &Definition) -> BTreeMap<String, Arc<Choices>> {
        let mut all = BTreeMap::new();
        for parameter in definition.parameters() {
            match choices::list(&self.reports, definition, parameter).await {
                Ok(Some(choices)) => {
                    all.insert(parameter.name().to_owned(), choices);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        report = %definition.slug(),
                        parameter = parameter.name(),
                        code = error.code(),
                        "cannot ask for the choices of a parameter"
                    );
                }
            }
        }
        all
    }

    /// Refuses values that are not among what a query for choices returns.
    pub(super) async fn require_choices(
        &self,
        definition: &Definition,
        bound: &BoundParameters,
    ) -> Result<(), ServiceError> {
        let checked = choices::check_values(&self.reports, definition, bound).await;
        let errors = checked.map_err(report_failed)?;
        if errors.is_empty() { Ok(()) } else { Err(ServiceError::BadParameters(errors)) }
    }

    /// Brings every template of a folder into the database, in one transaction. Versions grow only
    /// where the content changed; templates that are gone are switched off.
    ///
    /// # Errors
    /// [`TemplatesError`]; nothing is stored then.
    pub async fn sync_templates(&self, folder: &Path) -> Result<Vec<Synced>, TemplatesError> {
        let templates = read_templates(folder)?;
        let system = Actor::system();
        let mut tx = self.db.begin().await?;
        let mut all = Vec::new();
        for definition in &templates {
            all.extend(store(&mut tx, &system, definition, Source::Template).await?);
        }
        let slugs: Vec<_> = templates.iter().map(|d| d.slug().to_string()).collect();
        for slug in definitions::deactivate_templates_except(&mut tx, &slugs).await? {
            let event = audit::Event {
                action: "report.deactivated",
                entity_type: "report_definitions",
                entity_id: None,
                details: json!({ "slug": slug }),
            };
            audit::record(&mut tx, &Actor::system(), event).await?;
        }
        tx.commit().await?;
        Ok(all)
    }

    /// Checks every template of a folder: the files, and with the server, as the report role, that
    /// the query can be run and returns the columns that the template describes.
    ///
    /// # Errors
    /// [`TemplatesError::Files`] when files cannot be read.
    pub async fn validate_templates(
        &self,
        folder: &Path,
    ) -> Result<Vec<Validated>, TemplatesError> {
        let mut all = Vec::new();
        for definition in read_templates(folder)? {
            let problems = match self.validate(&definition).await {
                Ok(problems) => problems,
                Err(error) => vec![error.public_message()],
            };
            all.push(Validated { slug: definition.slug().to_string(), problems });
        }
        Ok(all)
    }

    async fn validate(&self, definition: &Definition) -> Result<Vec<String>, ReportError> {
        let checked = crate::report::check(&self.reports, definition, &self.config.report);
        let mut problems = checked.await?;
        problems.extend(choices::check_queries(&self.reports, definition).await?);
        Ok(problems)
    }
}

/// The catalogue is open to those who may look and to those who may run.
fn require_catalogue(caller: &Caller) -> Result<(), ServiceError> {
    if caller.may(Permission::ReportsView.codename()) {
        return Ok(());
    }
    caller.require(Permission::ReportsRun)
}

fn read_templates(folder: &Path) -> Result<Vec<Definition>, TemplatesError> {
    load_templates(folder).map_err(|errors| {
        TemplatesError::Files(errors.into_iter().map(|error| error.to_string()).collect())
    })
}

/// PostgreSQL cannot keep it in any text.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(members) => {
            members.iter().any(|(name, value)| name.contains('\0') || has_nul(value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn is_template(slug: &str) -> ServiceError {
    let message = format!("`{slug}` is kept in the templates' folder: change its files and sync");
    ServiceError::refused("is_template", message)
}

/// `None`: the slug is a template's, and this is not.
async fn store(
    connection: &mut sqlx::PgConnection,
    actor: &Actor,
    definition: &Definition,
    source: Source,
) -> Result<Option<Synced>, sqlx::Error> {
    let new = NewDefinition {
        slug: definition.slug().as_str(),
        name: definition.title(),
        description: definition.description(),
        query: definition.sql(),
        parameters: &definition.parameters_json(),
        spec: &definition.spec(),
        content_sha256: &definition.content_digest(),
    };
    let Some((id, version, outcome)) = definitions::upsert(connection, &new, source).await? else {
        return Ok(None);
    };
    if outcome != Stored::Unchanged {
        let event = audit::Event {
            action: match source {
                Source::Template => "report.synced",
                Source::Api { .. } => "report.stored",
            },
            entity_type: "report_definitions",
            entity_id: Some(i64::from(id)),
            details: json!({ "slug": new.slug, "version": version }),
        };
        audit::record(connection, actor, event).await?;
    }
    Ok(Some(Synced { slug: new.slug.to_owned(), version, outcome }))
}
