//! A user's crate in which nothing is called what the macros' output might think.
#![deny(missing_docs, unused, unreachable_pub, clippy::pedantic)]

/// The user's own `Result`, with nothing in common with std's.
#[derive(Debug, Clone, Copy)]
pub struct Result;

/// The user's own `Option`.
#[derive(Debug, Clone, Copy)]
pub enum Option {
    /// Not std's.
    Some,
    /// Not std's.
    None,
}

/// The user's own `String`.
pub type String = u8;

/// The user's own `Vec`.
pub type Vec = u8;

/// The user's own `Box`.
pub trait Box {}

/// The user's own `Send`.
pub trait Send {}

/// The user's own `Ok` and `Err`.
#[allow(non_snake_case, missing_docs)]
pub mod shadows {
    pub struct Ok;
    pub struct Err;
}

/// All of them in scope, beside the macros.
pub mod shadowed {
    #[allow(unused_imports)]
    use super::shadows::{Err, Ok};
    #[allow(unused_imports)]
    use super::{Box, Option, Result, Send, String, Vec};

    rt::domain_events! {
        pub OrderEvents: "shop.Order" => [OrderPlaced, OrderShipped, OrderPraised]
    }

    /// An order was placed.
    #[derive(Debug, serde::Serialize, serde::Deserialize, rt::DomainEvent)]
    #[event(aggregate = OrderEvents, routing_key = "Order.Placed")]
    pub struct OrderPlaced {
        /// How many.
        #[serde(alias = "Count")]
        pub count: u32,
    }

    /// An order was shipped; it had no weight once.
    #[derive(Debug, serde::Serialize, serde::Deserialize, rt::DomainEvent)]
    #[event(aggregate = OrderEvents, version = 3, upcast(1 => from_v1, 2 => |grams| OrderShipped { grams }))]
    pub struct OrderShipped {
        /// The weight.
        pub grams: u32,
    }

    fn from_v1((): ()) -> core::result::Result<u32, core::num::ParseIntError> {
        "0".parse()
    }

    /// An order was praised.
    #[derive(Debug, serde::Serialize, serde::Deserialize, rt::DomainEvent)]
    #[event(aggregate = OrderEvents)]
    pub struct OrderPraised {}

    /// Orders; the table's name is a word of SQL.
    #[derive(Debug, Clone, Copy)]
    pub struct Orders;

    #[rt::projection(
        name = "orders",
        tables = ["order"],
        order = "aggregate",
        covers = OrderEvents,
        ignores = [OrderPraised],
    )]
    impl Orders {
        #[rt::on(OrderShipped)]
        async fn shipped(events: &[rt::Recorded<OrderShipped>], tx: &mut rt::PgConnection) -> rt::Result<()> {
            let _ = (events.iter().map(|event| event.data.grams), tx);
            core::future::ready(()).await;
            core::result::Result::Ok(())
        }

        /// With attributes of another crate and of the compiler.
        #[rt::on(super::bare::Closed)]
        #[tracing::instrument(skip_all)]
        #[cfg(not(any()))]
        #[allow(clippy::unused_async)]
        async fn closed(_: &rt::Recorded<super::bare::Closed>, _: &mut rt::PgConnection) -> rt::Result<()> {
            core::result::Result::Ok(())
        }

        #[cfg(any())]
        #[rt::on(super::bare::Closed)]
        async fn never(_: &rt::Recorded<NoSuchType>, _: &mut rt::PgConnection) -> rt::Result<()> {
            no_such_function()
        }

        #[rt::on(OrderPlaced)]
        async fn placed(event: &rt::Recorded<OrderPlaced>, tx: &mut rt::PgConnection) -> rt::Result<()> {
            let _ = (event.data.count, tx);
            core::future::ready(()).await;
            core::result::Result::Ok(())
        }
    }
}

/// Nothing is imported, and one handler takes `&self`.
pub mod bare {
    /// The shop was closed.
    #[derive(Debug, ::serde::Serialize, ::serde::Deserialize, ::rt::DomainEvent)]
    #[event(aggregate = "shop.Shop")]
    pub struct Closed {}

    /// A projection with state.
    #[derive(Debug)]
    pub struct Counts(pub u32);

    #[::rt::projection(name = "counts", tables = ["counts"], after = ["orders"])]
    impl Counts {
        #[on(super::shadowed::OrderPlaced)]
        async fn placed(
            &self,
            event: &::rt::Recorded<super::shadowed::OrderPlaced>,
            tx: &mut ::rt::PgConnection,
        ) -> ::rt::Result<()> {
            let _ = (self.0 + event.data.count, tx);
            core::future::ready(()).await;
            ::core::result::Result::Ok(())
        }
    }
}

/// Written by a macro of the user's own.
pub mod made {
    macro_rules! projection {
        ($name:ident, $event:path, $taken:ty, $text:literal) => {
            /// Made.
            #[derive(Debug)]
            pub struct $name;

            #[rt::projection(name = $text, tables = [$text])]
            impl $name {
                #[on($event)]
                async fn placed(event: &rt::Recorded<$taken>, tx: &mut rt::PgConnection) -> rt::Result<()> {
                    let _ = (event.data.count, tx);
                    core::future::ready(()).await;
                    core::result::Result::Ok(())
                }
            }
        };
    }

    projection!(Made, super::shadowed::OrderPlaced, super::shadowed::OrderPlaced, "made");
}

/// The set of all.
#[must_use]
pub fn projections() -> rt::ProjectionSet {
    rt::projections![shadowed::Orders, bare::Counts = bare::Counts(7), made::Made]
}

#[cfg(test)]
mod tests {
    use rt::Projection;

    #[test]
    fn the_registration_is_what_was_written() {
        let orders = super::shadowed::Orders::DEFINITION;
        assert_eq!((orders.name, orders.tables), ("orders", ["order"].as_slice()));
        assert_eq!(orders.ignores, ["OrderPraised"]);
        let [shipped, closed, event] = orders.events else { panic!("{orders:?}") };
        assert_eq!((shipped.handler, shipped.form, shipped.version), ("shipped", rt::Form::Run, 3));
        assert_eq!((closed.handler, closed.ty), ("closed", "hygiene::bare::Closed"));
        assert_eq!((event.name, event.aggregate), ("OrderPlaced", "shop.Order"));
        assert_eq!((event.routing_key, event.handler, event.version), ("Order.Placed", "placed", 1));
        assert_eq!(super::projections().definitions().count(), 3);
    }
}
