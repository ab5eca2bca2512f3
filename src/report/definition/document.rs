//! The form of a definition in TOML and in JSON, before anything is checked but the types of its
//! keys.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::error::{DefinitionError, DefinitionFault};
use super::layout::{LayoutSpec, SheetDocument, SheetSpec};
use super::{ColumnSpec, Definition, DefinitionLimits};
use crate::report::parameters::{Parameter, ParameterDocument};
use crate::report::sql::Position;
use crate::writer::xlsx::layout::{Chart, Conditional};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) title: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) permission: Option<String>,
    #[serde(default = "utc")]
    pub(super) time_zone: String,
    #[serde(default)]
    pub(super) tags: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) split_by: Option<String>,
    // What is left out is not there either in the JSON: definitions from before there were
    // layouts keep their digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sheet_name: Option<String>,
    #[serde(default)]
    pub(super) parameter: Vec<ParameterDocument>,
    #[serde(default)]
    pub(super) column: Vec<ColumnSpec>,
    #[serde(default, skip_serializing_if = "LayoutSpec::is_default")]
    pub(super) layout: LayoutSpec,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) conditional: Vec<Conditional<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) chart: Vec<Chart<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sheet: Vec<SheetDocument>,
    #[serde(default)]
    pub(super) limits: DefinitionLimits,
    #[serde(default)]
    pub(super) result: ResultDocument,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResultDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_after_days: Option<NonZeroU32>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Document {
    pub(super) fn from_toml(toml: &str, file: &str) -> Result<Self, DefinitionError> {
        toml::from_str(toml).map_err(|error| {
            DefinitionError::new(vec![DefinitionFault {
                file: file.to_owned(),
                position: error.span().map(|span| Position::of(toml, span.start)),
                key: String::new(),
                expected: error.message().to_owned(),
            }])
        })
    }

    pub(super) fn from_json(spec: &Json, file: &str) -> Result<Self, DefinitionError> {
        Self::deserialize(spec).map_err(|error| {
            DefinitionError::new(vec![DefinitionFault {
                file: file.to_owned(),
                position: None,
                key: String::new(),
                expected: error.to_string(),
            }])
        })
    }
}

impl Definition {
    /// The definition in normal form.
    pub(super) fn document(&self) -> Document {
        let Self {
            slug: _,
            title,
            description,
            permission,
            time_zone,
            tags,
            sql: _,
            query: _,
            parameters,
            columns,
            limits,
            expires_after_days,
            split_by,
            sheet_name,
            look,
            more_sheets,
        } = self;
        Document {
            title: title.clone(),
            description: description.clone(),
            permission: permission.clone(),
            time_zone: time_zone.name().to_owned(),
            tags: tags.clone(),
            split_by: split_by.clone(),
            sheet_name: sheet_name.clone(),
            layout: look.layout.clone(),
            conditional: look.conditionals.clone(),
            chart: look.charts.clone(),
            sheet: more_sheets.iter().map(SheetSpec::document).collect(),
            parameter: parameters.iter().map(Parameter::document).collect(),
            column: columns.clone(),
            limits: limits.clone(),
            result: ResultDocument { expires_after_days: *expires_after_days },
        }
    }
}
