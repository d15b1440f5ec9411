//! The status page in a browser, in the states that an operator meets. Its pictures are left in target/pictures.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::http::{Service, TOKEN};
use tests::TestDatabase;
use tests::browser::Browser;

const SOON: Duration = Duration::from_secs(20);

fn picture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/pictures/{name}.png"))
}

/// The page, wide and light or narrow and dark, and what would be lost if it were loaded again.
fn page(service: &Service, narrow: bool) -> Browser {
    let mut browser = if narrow { Browser::start(360, 900, true) } else { Browser::start(1280, 900, false) };
    browser.go(&format!("http://127.0.0.1:{}/", service.port));
    browser.until("document.querySelectorAll('[data-projection]').length === 4", SOON);
    browser.value("window.loaded = 'once'");
    browser
}

fn ends_well(browser: Browser) {
    ends_well_but_for(browser, &[]);
}

/// The page may have logged errors with one of these texts.
fn ends_well_but_for(mut browser: Browser, expected: &[&str]) {
    assert_eq!(browser.value("window.loaded"), "once", "it was loaded again");
    assert_eq!(browser.value("document.documentElement.scrollWidth <= window.innerWidth"), true, "it is too wide");
    browser.errors.retain(|error| !expected.iter().any(|expected| error.contains(expected)));
    assert_eq!(browser.errors, Vec::<String>::new());
}

fn state(name: &str) -> String {
    format!("document.querySelector('[data-projection={name}]').dataset.state")
}

fn text(field: &str) -> String {
    format!("document.querySelector('{field}').innerText")
}

/// What failed and why can be read; and it is seen to be mended, without loading the page again.
#[tokio::test(flavor = "multi_thread")]
async fn failed_and_mended() {
    let db = TestDatabase::new().await;
    // Names that begin with `<` are refused, until that is mended.
    sqlx::query("ALTER TABLE band ADD CONSTRAINT names CHECK (name NOT LIKE '<%')").execute(&db.pool).await.unwrap();
    let service = Service::start_with(&db, &[], Some(TOKEN)).await;
    service.is_live().await;
    let (mut wide, mut narrow) = (page(&service, false), page(&service, true));
    for browser in [&mut wide, &mut narrow] {
        browser.until(&format!("{} === 'All 4 projections are live'", text("[data-field=verdict]")), SOON);
    }
    // A few looks, for the charts.
    tokio::time::sleep(Duration::from_secs(11)).await;
    wide.picture(&picture("all-well-wide"));
    narrow.picture(&picture("all-well-narrow"));

    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'domain.Band', 'BandCreated', $1)",
    )
    .bind(serde_json::json!({ "name": "<img src=x onerror='window.hostile = 1'>" }))
    .execute(&db.pool)
    .await
    .unwrap();
    for browser in [&mut wide, &mut narrow] {
        browser.until(&format!("{} === 'failed'", state("band")), SOON);
        let verdict = browser.value(&text("[data-field=verdict]"));
        assert!(verdict.as_str().unwrap().contains("failed"), "{verdict}");
        let error = browser.value(&text("[data-projection=band] [data-field=error]"));
        assert!(error.as_str().unwrap().contains("violates check constraint \"names\""), "{error}");
        let card = browser.value(&text("[data-projection=band]"));
        assert!(card.as_str().unwrap().contains("dancefinder-projections retry band"), "{card}");
    }
    wide.value("document.querySelector('[data-projection=band] details').open = true");
    wide.picture(&picture("failed-wide"));
    narrow.picture(&picture("failed-narrow"));

    // As a person would: fill it in, and press the button. The error stays what it was until the cause is gone.
    let fill = |token: &str| {
        format!(
            "{{ const card = document.querySelector('[data-projection=band]');
               const type = (input, value) => {{
                   input.value = value;
                   for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, {{ bubbles: true }}));
               }};
               type(document.querySelector('input[name=token]'), '{token}');
               type(card.querySelector('input[name=by]'), 'Elin');
               type(card.querySelector('input[name=reason]'), 'the constraint is gone');
               card.querySelector('[data-act=retry]').click(); }}"
        )
    };
    let said = text("[data-projection=band] output");
    wide.value(&fill("not-the-token-of-the-service"));
    wide.until(&format!("{said}.includes('ADMIN_TOKEN')"), SOON);
    assert_eq!(wide.value(&state("band")), "failed");
    // The browser tells of each answer that is none.
    let refused = wide.errors.drain(..).filter(|error| !error.contains("401")).collect::<Vec<_>>();
    assert_eq!(refused, Vec::<String>::new());
    sqlx::query("ALTER TABLE band DROP CONSTRAINT names").execute(&db.pool).await.unwrap();
    wide.value(&fill(TOKEN));
    wide.until(&format!("{said}.includes('try the failed event again')"), SOON);
    for browser in [&mut wide, &mut narrow] {
        browser.until(&format!("{} === 'live'", state("band")), SOON);
        browser.until(&format!("{} === 'All 4 projections are live'", text("[data-field=verdict]")), SOON);
        assert_eq!(browser.value("window.hostile === undefined && !document.querySelector('#main img')"), true);
    }
    wide.until(&format!("{}.includes('the constraint is gone')", text("#acts")), SOON);
    ends_well(wide);
    ends_well(narrow);
}

/// A rebuild shows, and a handler that hangs; so does a service that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn rebuilding_hanging_gone() {
    let db = TestDatabase::new().await;
    let service = Service::start_with(&db, &[], Some(TOKEN)).await;
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         SELECT gen_random_uuid(), 'domain.Band', 'BandCreated', jsonb_build_object('name', n::text)
         FROM generate_series(1, 1000) n",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    service.is_live().await;
    let (mut wide, mut narrow) = (page(&service, false), page(&service, true));

    // Nobody may write to the table, so the rebuild waits before it replaces rows.
    sqlx::query("UPDATE band SET name = name || '!' WHERE name::int % 2 = 0").execute(&db.pool).await.unwrap();
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE band IN SHARE MODE").execute(&mut *lock).await.unwrap();
    let order = serde_json::json!({ "by": "Elin", "reason": "rows were edited by hand" });
    assert_eq!(service.act(TOKEN, "band/rebuild", &order).await.0, 202);
    for browser in [&mut wide, &mut narrow] {
        browser.until("document.querySelector('[data-projection=band] progress').checkVisibility()", SOON);
    }
    wide.picture(&picture("rebuilding-wide"));
    narrow.picture(&picture("rebuilding-narrow"));
    let (code, status) = service.get("/api/projections").await;
    assert_eq!((code, status.contains(r#""rebuilds":[{"name":"band""#)), (200, true), "{status}");
    lock.rollback().await.unwrap();
    wide.until("!document.querySelector('[data-projection=band] progress').checkVisibility()", SOON);
    let done = "document.querySelector('#acts').innerText.includes('500 changed')";
    wide.until(done, SOON);
    // The rows that are built on those of the bands are stale now.
    let stale = format!("{}.includes('built on rows of band')", text("[data-projection=userpreferences]"));
    wide.until(&stale, SOON);
    assert_eq!(service.act(TOKEN, "userpreferences/rebuild", &order).await.0, 202);
    wide.until(&format!("!{stale}"), SOON);

    // Now it is the handler that waits.
    let mut lock = db.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE band IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    sqlx::query(
        "INSERT INTO events (aggregate_id, aggregate_name, name, data)
         VALUES (gen_random_uuid(), 'domain.Band', 'BandCreated', '{\"name\": \"Torvaldzons\"}')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let hangs = format!("{}.includes('its loop hangs')", text("[data-projection=band]"));
    wide.until(&hangs, Duration::from_secs(30));
    narrow.until(&hangs, SOON);
    assert_eq!(service.get("/health/ready").await.0, 503);
    wide.picture(&picture("hanging-wide"));
    lock.rollback().await.unwrap();
    wide.until(&format!("{} === 'All 4 projections are live'", text("[data-field=verdict]")), SOON);

    let trouble = "document.querySelector('#trouble').checkVisibility()";
    assert_eq!(wide.value(trouble), false);
    drop(service);
    wide.until(trouble, SOON);
    wide.picture(&picture("gone-wide"));
    narrow.until(trouble, SOON);
    narrow.picture(&picture("gone-narrow"));
    // That nobody answers, it logs as an error, as every browser does, and goes on asking.
    let expected = ["net::ERR_", "503"];
    ends_well_but_for(wide, &expected);
    ends_well_but_for(narrow, &expected);
}
