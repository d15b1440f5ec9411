#[projection(
    name = "tours",
    tables = ["tour", "archive.stop"],
    cascade = true,
    after = ["band", "dancehall"],
    order = "aggregate",
    covers = [TourEvents, StopEvents],
    ignores = [TourPraised],
)]
#[allow(clippy::too_many_lines)]
impl TourProjection {
    /// With what it was built with.
    #[on(TourPlanned)]
    #[tracing::instrument(skip_all)]
    async fn planned(&self, event: &Recorded<TourPlanned>, tx: &mut PgConnection) -> Result<()> {
        self.insert(event, tx).await
    }

    /// A run of events.
    #[on(events::StopAdded)]
    async fn stops(events: &[Recorded<events::StopAdded>], tx: &mut PgConnection) -> sqlx::Result<()> {
        insert_all(events, tx).await
    }

    #[cfg(feature = "cancel")]
    #[on(TourCancelled)]
    async fn cancelled(event: &Recorded<TourCancelled>, tx: &mut PgConnection) -> anyhow::Result<()> {
        delete(event.aggregate_id, tx).await
    }

    async fn insert(&self, event: &Recorded<TourPlanned>, tx: &mut PgConnection) -> Result<()> {
        todo!()
    }
}
