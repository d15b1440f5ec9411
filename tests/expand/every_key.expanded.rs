#[allow(clippy::too_many_lines)]
impl TourProjection {
    #[doc = " With what it was built with."]
    #[tracing::instrument(skip_all)]
    async fn planned(&self, event: &Recorded<TourPlanned>, tx: &mut PgConnection) -> Result<()> {
        self.insert(event, tx).await
    }
    #[doc = " A run of events."]
    async fn stops(events: &[Recorded<events::StopAdded>], tx: &mut PgConnection) -> sqlx::Result<()> {
        insert_all(events, tx).await
    }
    #[cfg(feature = "cancel")]
    async fn cancelled(event: &Recorded<TourCancelled>, tx: &mut PgConnection) -> anyhow::Result<()> {
        delete(event.aggregate_id, tx).await
    }
    #[doc = " A row, by the aggregate's id."]
    fn named(row: &mut Option<Tour>, event: &Recorded<TourNamed>) {
        *row = Some(Tour::named(event));
    }
    #[doc = " A row, by a key of its own."]
    fn moved(&self, row: &mut Option<Tour>, event: &Recorded<TourMoved>) -> Result<()> {
        self.change(row)
    }
    async fn insert(&self, event: &Recorded<TourPlanned>, tx: &mut PgConnection) -> Result<()> {
        todo!()
    }
}
const _: () = {
    use ::projection_runtime::__private;
    struct ThisProjection;
    type __Event0 = TourPlanned;
    impl __private::Handler<__Event0> for ThisProjection {
        type Event = __Event0;
        const FUNCTION: &'static str = "planned";
        const FINGERPRINT: u64 = 402800027103377798u64;
    }
    type __Event1 = events::StopAdded;
    impl __private::Handler<__Event1> for ThisProjection {
        type Event = __Event1;
        const FUNCTION: &'static str = "stops";
        const FINGERPRINT: u64 = 10765966318665013423u64;
        const FORM: __private::Form = __private::Form::Run;
    }
    #[cfg(feature = "cancel")]
    type __Event2 = TourCancelled;
    #[cfg(feature = "cancel")]
    impl __private::Handler<__Event2> for ThisProjection {
        type Event = __Event2;
        const FUNCTION: &'static str = "cancelled";
        const FINGERPRINT: u64 = 4495167497731100634u64;
    }
    type __Event3 = TourNamed;
    impl __private::Handler<__Event3> for ThisProjection {
        type Event = __Event3;
        const FUNCTION: &'static str = "named";
        const FINGERPRINT: u64 = 7545713779811308621u64;
        const FORM: __private::Form = __private::Form::Row;
    }
    type __Event4 = TourMoved;
    impl __private::Handler<__Event4> for ThisProjection {
        type Event = __Event4;
        const FUNCTION: &'static str = "moved";
        const FINGERPRINT: u64 = 13267157970347746309u64;
        const FORM: __private::Form = __private::Form::Row;
    }
    type __Row0 = Tour;
    impl __private::RowOf<__Row0> for ThisProjection {
        type Row = __Row0;
    }
    #[automatically_derived]
    #[allow(clippy::too_many_lines)]
    impl ::projection_runtime::Projection for TourProjection {
        const DEFINITION: &'static ::projection_runtime::Definition = &::projection_runtime::Definition {
            name: "tours",
            tables: &["tour", "archive.stop"],
            after: &["band", "dancehall"],
            order: ::projection_runtime::Order::Aggregate,
            partitions: &[],
            events: &[
                <ThisProjection as __private::Handler<__Event0>>::EVENT_TYPE,
                <ThisProjection as __private::Handler<__Event1>>::EVENT_TYPE,
                #[cfg(feature = "cancel")]
                <ThisProjection as __private::Handler<__Event2>>::EVENT_TYPE,
                <ThisProjection as __private::Handler<__Event3>>::EVENT_TYPE,
                <ThisProjection as __private::Handler<__Event4>>::EVENT_TYPE,
            ],
            ignores: &[<TourPraised as ::projection_runtime::DomainEvent>::NAME],
            rows: &[<ThisProjection as __private::RowOf<__Row0>>::TABLE],
            fingerprint: 10404266849842254207u64,
        };
        async fn apply(
            &self,
            event: &::projection_runtime::StoredEvent,
            tx: &mut ::projection_runtime::PgConnection,
        ) -> __private::Result<(), ::projection_runtime::ApplyError> {
            match &*event.name {
                name if name == <ThisProjection as __private::Handler<__Event0>>::EVENT_NAME => {
                    let event = <ThisProjection as __private::Handler<__Event0>>::decode(event)?;
                    let future = Self::planned(self, __private::argument(&event), &mut *tx);
                    let result = __private::send(future).await;
                    __private::outcome(result)
                }
                #[cfg(feature = "cancel")]
                name if name == <ThisProjection as __private::Handler<__Event2>>::EVENT_NAME => {
                    let event = <ThisProjection as __private::Handler<__Event2>>::decode(event)?;
                    let future = Self::cancelled(__private::argument(&event), &mut *tx);
                    let result = __private::send(future).await;
                    __private::outcome(result)
                }
                _ => __private::not_handled("tours", event),
            }
        }
        async fn apply_run(
            &self,
            events: &[&::projection_runtime::StoredEvent],
            tx: &mut ::projection_runtime::PgConnection,
        ) -> __private::Result<(), ::projection_runtime::ApplyError> {
            match __private::run_name(events) {
                name if name == <ThisProjection as __private::Handler<__Event1>>::EVENT_NAME => {
                    let events = <ThisProjection as __private::Handler<__Event1>>::decode_run(events)?;
                    let future = Self::stops(__private::run(&events), &mut *tx);
                    let result = __private::send(future).await;
                    __private::outcome(result)
                }
                _ => __private::run_not_handled("tours", events),
            }
        }
        async fn apply_rows(
            &self,
            events: &[&::projection_runtime::StoredEvent],
            tx: &mut ::projection_runtime::PgConnection,
        ) -> __private::Result<(), __private::RunError> {
            let mut rows0 = <ThisProjection as __private::RowOf<__Row0>>::changes(events.len());
            for (at, event) in events.iter().enumerate() {
                match &*event.name {
                    name if name == <ThisProjection as __private::Handler<__Event3>>::EVENT_NAME => {
                        let key = __private::aggregate_key(&rows0, event);
                        rows0.add(at, key, false, move |row| {
                            let event = <ThisProjection as __private::Handler<__Event3>>::decode(event)?;
                            let result = Self::named(row, __private::argument(&event));
                            __private::row_outcome(result)
                        });
                    }
                    name if name == <ThisProjection as __private::Handler<__Event4>>::EVENT_NAME => {
                        let event = __private::at(at, <ThisProjection as __private::Handler<__Event4>>::decode(event))?;
                        let key = {
                            let event = &event;
                            let key = (__private::key_part(&event.aggregate_id), __private::key_part(&event.data.day));
                            __private::key(&rows0, key)
                        };
                        rows0.add(at, key, false, move |row| {
                            let result = Self::moved(self, row, __private::argument(&event));
                            __private::row_outcome(result)
                        });
                    }
                    _ => __private::at(at, __private::not_handled("tours", event))?,
                }
            }
            rows0.apply(tx).await?;
            __private::Result::Ok(())
        }
        async fn reset(tx: &mut ::projection_runtime::PgConnection) -> __private::Result<(), __private::SqlxError> {
            __private::execute("TRUNCATE TABLE \"tour\", \"archive\".\"stop\" CASCADE", tx).await
        }
    }
    const COVERED: &[(&str, &[&str])] = &[
        ("TourEvents", <TourEvents as ::projection_runtime::EventSet>::EVENTS),
        ("StopEvents", <StopEvents as ::projection_runtime::EventSet>::EVENTS),
    ];
    const _: () = __private::check_coverage::<TourProjection>(COVERED, 0usize);
    const _: () = __private::check_coverage::<TourProjection>(COVERED, 1usize);
    const _: () = __private::check_ignored::<TourProjection>(COVERED, 0usize);
    const ROWS: &[&str] = &["Tour"];
    const _: () = __private::check_row::<TourProjection>(ROWS, {
        const BEFORE: &[()] = &[];
        BEFORE.len()
    });
};
