//! stub
use crate::service::Services;
use tokio_util::sync::CancellationToken;
/// stub
#[derive(Clone)]
pub struct ApiState;
impl ApiState {
    /// stub
    pub fn new(
        _: Services,
        _: metrics_exporter_prometheus::PrometheusHandle,
        _: CancellationToken,
    ) -> Self {
        Self
    }
}
/// stub
pub async fn serve(_: tokio::net::TcpListener, _: ApiState) -> std::io::Result<()> {
    Ok(())
}
/// stub
pub fn openapi() -> serde_json::Value {
    serde_json::Value::Null
}
