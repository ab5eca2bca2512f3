//! Lifecycle policies: `/v1/policies`.

use std::num::NonZeroU32;

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::extract::{Authenticated, ReportSlug};
use super::problem::Problem;
use super::query::{NoQuery, QueryReader};
use crate::policy::Policy;
use crate::retention::anonymize::SmallGroups;

/// Every policy of the jobs folder.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyList {
    /// By name.
    pub policies: Vec<PolicySummary>,
}

/// A policy in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicySummary {
    /// Its name in URLs: its file's, without `.toml`.
    pub name: String,
    /// What it does.
    #[schema(example = "archive")]
    pub kind: &'static str,
    /// The same for people.
    pub description: String,
    /// Who answers for it.
    pub owner: String,
    /// Whether it may run.
    pub enabled: bool,
    /// When it runs by itself; none: only by hand.
    pub cron: Option<String>,
    /// IANA zone of its cutoff and its schedule.
    pub time_zone: String,
    /// SHA-256 of its content in normal form, in hex.
    pub digest: String,
    /// Its path.
    #[serde(rename = "self")]
    pub itself: String,
}

/// A policy with all that it says.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyResource {
    /// What the list shows.
    #[serde(flatten)]
    pub summary: PolicySummary,
    /// The file's content, with every default filled in.
    #[schema(value_type = Object)]
    pub content: Value,
}

impl From<&Policy> for PolicySummary {
    fn from(policy: &Policy) -> Self {
        Self {
            name: policy.name.to_string(),
            kind: policy.kind.name(),
            description: policy.description.clone(),
            owner: policy.owner.clone(),
            enabled: policy.enabled,
            cron: policy.schedule.as_ref().map(|schedule| schedule.cron.clone()),
            time_zone: policy.time_zone.name().to_owned(),
            digest: policy.digest(),
            itself: format!("/v1/policies/{}", policy.name),
        }
    }
}

/// List lifecycle policies
///
/// As the files are now: a changed file counts from its next use.
#[utoipa::path(
    get,
    path = "/v1/policies",
    tag = "lifecycle",
    responses((
        status = 200,
        description = "Every policy.",
        body = PolicyList,
        example = json!({"policies": [summary_example()]}),
    ))
)]
pub async fn list_policies(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Json<PolicyList>, Problem> {
    let policies = state.services.list_policies(&caller).await?;
    Ok(Json(PolicyList { policies: policies.iter().map(PolicySummary::from).collect() }))
}

/// Show a lifecycle policy
#[utoipa::path(
    get,
    path = "/v1/policies/{name}",
    tag = "lifecycle",
    params(("name" = String, Path, description = "Name of the policy.",
        example = "archive-audit-logs")),
    responses((
        status = 200,
        description = "The policy.",
        body = PolicyResource,
        example = json!(policy_example()),
    ))
)]
pub async fn show_policy(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    // Names of policies are made as slugs are.
    ReportSlug(name): ReportSlug,
    _: NoQuery,
) -> Result<Json<PolicyResource>, Problem> {
    let policy = state.services.find_policy(&caller, &name).await?;
    let content = serde_json::to_value(&policy).expect("names and numbers only");
    Ok(Json(PolicyResource { summary: PolicySummary::from(&policy), content }))
}

/// Count small groups
///
/// Groups of people who are closed accounts, share the columns that a policy's `k_anonymity` names,
/// and are fewer than k. Values are not told: they could identify.
#[utoipa::path(
    get,
    path = "/v1/policies/{name}/anonymity",
    tag = "lifecycle",
    params(
        ("name" = String, Path, description = "Name of a policy of kind `anonymize`.",
            example = "anonymize-erased-users"),
        ("k" = Option<u32>, Query, description = "Another k than the policy's.", minimum = 2),
    ),
    responses((
        status = 200,
        description = "How many groups are too small.",
        body = SmallGroups,
        example = json!({"k": 5, "groups": 3, "people": 7, "smallest": 1}),
    ))
)]
pub async fn count_small_groups(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    ReportSlug(name): ReportSlug,
    RawQuery(query): RawQuery,
) -> Result<Json<SmallGroups>, Problem> {
    const EXPECTED: &str = "must be a whole number from 2";
    let mut query = QueryReader::new(query.as_deref());
    let k: Option<NonZeroU32> = query.parse("k", EXPECTED);
    if k.is_some_and(|k| k.get() < 2) {
        query.refuse("k", "invalid", EXPECTED);
    }
    query.finish()?;
    Ok(Json(state.services.count_small_groups(&caller, &name, k).await?))
}

fn summary_example() -> Value {
    json!({
        "name": "archive-audit-logs",
        "kind": "archive",
        "description": "Audit rows move to the archive after five years.",
        "owner": "records-office",
        "enabled": true,
        "cron": "30 2 * * SUN",
        "time_zone": "Africa/Harare",
        "digest": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
        "self": "/v1/policies/archive-audit-logs"
    })
}

fn policy_example() -> Value {
    let mut policy = summary_example();
    policy["content"] = json!({
        "kind": "archive",
        "limits": {"max_rows": 5_000_000, "max_share": 0.35},
        "approval": {"required_for": "over_ceiling", "by": "retention.approve"},
        "table": [{"name": "audit_logs", "age": "created_at", "after": "5 years",
                   "keep_children": false,
                   "export": {"format": "parquet", "verify": true}}]
    });
    policy
}
