// `sqlx::migrate!` reads the folder when the crate is compiled: without this line cargo does not see a new file in it.
fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
