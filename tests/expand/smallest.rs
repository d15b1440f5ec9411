#[projection(name = "band", tables = ["band"])]
impl BandProjection {
    #[on(BandCreated)]
    async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> {
        insert(event.aggregate_id, &event.data.name, tx).await
    }
}
