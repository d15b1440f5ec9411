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

    /// A row, by the aggregate's id.
    #[on(TourNamed)]
    fn named(row: &mut Option<Tour>, event: &Recorded<TourNamed>) {
        *row = Some(Tour::named(event));
    }

    /// A row, by a key of its own.
    #[on(TourMoved, key = (event.aggregate_id, event.data.day))]
    fn moved(&self, row: &mut Option<Tour>, event: &Recorded<TourMoved>) -> Result<()> {
        self.change(row)
    }

    async fn insert(&self, event: &Recorded<TourPlanned>, tx: &mut PgConnection) -> Result<()> {
        todo!()
    }
}
