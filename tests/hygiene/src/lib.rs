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

    /// An order was placed.
    #[derive(Debug, serde::Serialize, serde::Deserialize, rt::DomainEvent)]
    #[event(aggregate = "shop.Order", routing_key = "Order.Placed")]
    pub struct OrderPlaced {
        /// How many.
        pub count: u32,
    }

    /// Orders; the table's name is a word of SQL.
    #[derive(Debug, Clone, Copy)]
    pub struct Orders;

    #[rt::projection(name = "orders", tables = ["order"])]
    impl Orders {
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
        let [event] = orders.events else { panic!("{orders:?}") };
        assert_eq!((event.name, event.aggregate), ("OrderPlaced", "shop.Order"));
        assert_eq!((event.routing_key, event.handler, event.version), ("Order.Placed", "placed", 1));
        assert_eq!(super::projections().definitions().count(), 3);
    }
}
