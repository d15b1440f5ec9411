//! `sqlx::migrate!` reads the folder when the crate is compiled: a migration that is added there has it compiled again.

fn main() {
    println!("cargo::rerun-if-changed=../migrations");
}
