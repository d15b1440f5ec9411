//! The runtime and the service on a real PostgreSQL. One binary, so that there is one server.

mod append;
mod check;
mod control;
mod docs;
mod error_policy;
mod failures;
mod fault_kit;
mod faults;
mod fingerprint;
mod forms;
mod handlers;
mod hostile;
mod http;
mod import;
mod memory;

mod metrics;
mod offline;
mod openapi;
mod ordering;
mod page;
mod partitions;
mod passing;
mod properties;
mod rabbitmq;
mod rebuild;
mod replicas;
mod reset;
mod service;
mod store;
mod telemetry;
mod testing;
mod tls;
mod transaction;
mod two_databases;
mod versions;
