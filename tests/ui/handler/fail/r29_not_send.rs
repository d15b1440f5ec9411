use dancefinder_projections::events::BandCreated;
use projection_runtime::{PgConnection, Recorded, Result, projection, projections};

struct Bands;

#[projection(name = "band", tables = ["band"])]
impl Bands {
    #[on(BandCreated)]
    async fn created(event: &Recorded<BandCreated>, tx: &mut PgConnection) -> Result<()> { //~ ERROR future cannot be sent between threads safely
        let name = std::rc::Rc::new(event.data.name.clone());
        sqlx::query("INSERT INTO band (name) VALUES ($1)").bind(name.as_str()).execute(tx).await?;
        Ok(())
    }
}

fn main() {
    let _ = projections![Bands];
}
