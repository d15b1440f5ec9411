impl BandProjection {
    async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> {
        insert(event.aggregate_id, &event.data.name, tx).await
    }
}
const _: () = {
    use ::projection_runtime::__private;
    struct ThisProjection;
    type __Event0 = BandCreated;
    impl __private::Handler<__Event0> for ThisProjection {
        type Event = __Event0;
        const FUNCTION: &'static str = "created";
        const FINGERPRINT: u64 = 3987295483811220650u64;
    }
    #[automatically_derived]
    impl ::projection_runtime::Projection for BandProjection {
        const DEFINITION: &'static ::projection_runtime::Definition = &::projection_runtime::Definition {
            name: "band",
            tables: &["band"],
            after: &[],
            order: ::projection_runtime::Order::Stream,
            partitions: &[],
            events: &[<ThisProjection as __private::Handler<__Event0>>::EVENT_TYPE],
            ignores: &[],
            rows: &[],
            fingerprint: 0u64,
        };
        async fn apply(
            &self,
            event: &::projection_runtime::StoredEvent,
            tx: &mut ::projection_runtime::PgConnection,
        ) -> __private::Result<(), ::projection_runtime::ApplyError> {
            match &*event.name {
                name if name == <ThisProjection as __private::Handler<__Event0>>::EVENT_NAME => {
                    let event = <ThisProjection as __private::Handler<__Event0>>::decode(event)?;
                    let future = Self::created(__private::argument(&event), &mut *tx);
                    let result = __private::send(future).await;
                    __private::outcome(result)
                }
                _ => __private::not_handled("band", event),
            }
        }
        async fn reset(tx: &mut ::projection_runtime::PgConnection) -> __private::Result<(), __private::SqlxError> {
            __private::execute("TRUNCATE TABLE \"band\"", tx).await
        }
    }
};
