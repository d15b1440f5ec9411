//! `check` finds what would stop a projection at an event, or cost it rows: keys, columns, rules, rights and row security of
//! its tables. Each remedy is carried out as it stands.

use projection_runtime::{
    Check, DomainEvent, EventStore, ExpectedVersion, NewEvent, ProjectionManager, ReadModel, Recorded, State,
    projection, projections,
};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tests::TestDatabase;
use uuid::Uuid;

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Account")]
struct Opened {
    amount: i64,
}

#[derive(Debug, ReadModel)]
#[read_model(table = "account")]
struct Account {
    #[key]
    id: Uuid,
    amount: i64,
    note: Option<String>,
}

struct Accounts;

#[projection(name = "accounts", tables = ["account", "opening"])]
impl Accounts {
    #[on(Opened)]
    fn opened(row: &mut Option<Account>, event: &Recorded<Opened>) {
        let amount = row.take().map_or(0, |row| row.amount) + event.data.amount;
        *row = Some(Account { id: event.aggregate_id, amount, note: None });
    }

    #[on(Closed)]
    async fn closed(event: &Recorded<Closed>, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query("INSERT INTO opening (id) VALUES ($1)").bind(event.aggregate_id).execute(tx).await.map(drop)
    }
}

#[derive(Debug, Serialize, Deserialize, DomainEvent)]
#[event(aggregate = "test.Account")]
struct Closed {}

const TABLES: &str =
    "CREATE TABLE account (id UUID CONSTRAINT account_pkey PRIMARY KEY, amount BIGINT NOT NULL, note TEXT);
                      CREATE TABLE opening (id UUID)";

async fn database() -> TestDatabase {
    let db = TestDatabase::new().await;
    sqlx::raw_sql(TABLES).execute(&db.pool).await.unwrap();
    db
}

async fn check(pool: &PgPool) -> Check {
    ProjectionManager::new(pool.clone(), projections![Accounts]).unwrap().check().await.unwrap()
}

/// Two events of one aggregate, in batches of their own, so that the second one reads and writes over the row of the first.
async fn applied(pool: &PgPool) -> State {
    let (store, id) = (EventStore::new(pool.clone()), Uuid::new_v4());
    let manager = ProjectionManager::new(pool.clone(), projections![Accounts]).unwrap();
    let mut state = State::Live;
    for amount in [1, 2] {
        let event = NewEvent::new(&Opened { amount }).unwrap();
        store.append(id, ExpectedVersion::Any, &[event]).await.unwrap();
        let status = manager.catch_up(|_| {}).await.unwrap();
        state = status.projection("accounts").unwrap().state.clone();
    }
    state
}

/// What is done to the tables, and what then stops the projection: column or constraint, problem, remedy.
const PROBLEMS: &[(&str, &str, &str, &str)] = &[
    (
        "ALTER TABLE account DROP CONSTRAINT account_pkey, ADD CONSTRAINT account_pkey PRIMARY KEY (id) DEFERRABLE",
        "id",
        "key account_pkey of `account` on (id) is deferrable: ON CONFLICT, which row handlers use, cannot use it",
        "ALTER TABLE account DROP CONSTRAINT account_pkey, ADD CONSTRAINT account_pkey PRIMARY KEY (id);",
    ),
    (
        "ALTER TABLE account DROP CONSTRAINT account_pkey, ADD CONSTRAINT late UNIQUE (id) DEFERRABLE INITIALLY DEFERRED",
        "id",
        "key late of `account` on (id) is deferrable: ON CONFLICT, which row handlers use, cannot use it",
        "ALTER TABLE account DROP CONSTRAINT late, ADD CONSTRAINT late UNIQUE (id);",
    ),
    (
        "ALTER TABLE account DROP CONSTRAINT account_pkey; CREATE UNIQUE INDEX solvent ON account (id) WHERE amount > 0",
        "id",
        "`account` has no unique key on (id), by which its rows are found (solvent holds for some rows only)",
        "ALTER TABLE account ADD UNIQUE (id);",
    ),
    (
        "CREATE RULE twice AS ON INSERT TO account DO ALSO NOTIFY account",
        "twice",
        "rule twice of `account`: ON CONFLICT, which row handlers use, does not work with it",
        "DROP RULE twice ON account;",
    ),
    (
        "ALTER TABLE account ADD COLUMN \"Owner\" TEXT NOT NULL",
        "Owner",
        "column `Owner` of `account` is NOT NULL without a default, and row handlers do not write it",
        "ALTER TABLE account ALTER COLUMN \"Owner\" DROP NOT NULL; -- or add a field `Owner` to the row",
    ),
    (
        "CREATE DOMAIN given AS TEXT NOT NULL; ALTER TABLE account ADD COLUMN owner given",
        "owner",
        "column `owner` of `account` is NOT NULL without a default, and row handlers do not write it",
        "ALTER DOMAIN given DROP NOT NULL; -- or add a field `owner` to the row",
    ),
    (
        "ALTER TABLE account ALTER COLUMN amount TYPE INT",
        "amount",
        "column `amount` of `account` is of type integer, which its field cannot be read from: that is INT8",
        "ALTER TABLE account ALTER COLUMN amount TYPE INT8 USING amount::INT8; -- or change the field",
    ),
    (
        "ALTER TABLE account ALTER COLUMN amount TYPE NUMERIC(10, 2)",
        "amount",
        "column `amount` of `account` is of type numeric(10,2), which its field cannot be read from: that is INT8",
        "ALTER TABLE account ALTER COLUMN amount TYPE INT8 USING amount::INT8; -- or change the field",
    ),
    (
        "ALTER TABLE account DROP COLUMN amount, ADD COLUMN amount BIGINT NOT NULL GENERATED ALWAYS AS (1) STORED",
        "amount",
        "column `amount` of `account` is generated, but row handlers write it",
        "ALTER TABLE account ALTER COLUMN amount DROP EXPRESSION;",
    ),
    (
        "ALTER TABLE account DROP COLUMN amount, ADD COLUMN amount BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY",
        "amount",
        "column `amount` of `account` is GENERATED ALWAYS, but row handlers write it",
        "ALTER TABLE account ALTER COLUMN amount SET GENERATED BY DEFAULT;",
    ),
    (
        "ALTER TABLE account DROP COLUMN note",
        "note",
        "table `account` has no column `note`, which its rows have",
        "ALTER TABLE account ADD COLUMN \"note\" TEXT; -- then `rebuild accounts`",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_would_stop_a_projection_at_an_event() {
    let db = database().await;
    let found = check(&db.pool).await;
    assert_eq!((found.problems, found.warnings), (vec![], vec![]));
    assert_eq!(applied(&db.pool).await, State::Live);
    for &(damage, constraint, problem, cure) in PROBLEMS {
        let db = database().await;
        sqlx::raw_sql(damage).execute(&db.pool).await.unwrap();
        let found = check(&db.pool).await;
        let [one] = &found.problems[..] else { panic!("{damage}: {found:#?}") };
        assert_eq!((one.projection, one.table.as_str()), (Some("accounts"), "account"), "{damage}");
        assert_eq!((one.constraint.as_deref(), one.problem.as_str()), (Some(constraint), problem), "{damage}");
        assert_eq!(one.cure, cure, "{damage}");
        // The problem is real, and so is the remedy.
        assert_ne!(applied(&db.pool).await, State::Live, "{damage}");
        let mended = database().await;
        for sql in [damage, cure] {
            sqlx::raw_sql(sql).execute(&mended.pool).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        assert_eq!(check(&mended.pool).await.problems, [], "{cure}");
        assert_eq!(applied(&mended.pool).await, State::Live, "{cure}");
    }
}

/// What does not stop a projection, and is no problem: a trigger that sets what handlers do not write, defaults, keys with
/// more columns, columns that are included in a key, a domain.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_stop_a_projection() {
    for sql in [
        "ALTER TABLE account ADD COLUMN place BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY,
             ADD COLUMN at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
             ADD COLUMN twice BIGINT NOT NULL GENERATED ALWAYS AS (amount * 2) STORED",
        "CREATE UNIQUE INDEX ON account (id, amount); CREATE UNIQUE INDEX ON account (id) WHERE amount > 1",
        "ALTER TABLE account DROP CONSTRAINT account_pkey; CREATE UNIQUE INDEX ON account (id) INCLUDE (note)",
        "CREATE DOMAIN money_amount AS BIGINT CHECK (VALUE > 0); ALTER TABLE account ALTER COLUMN amount TYPE money_amount",
        "ALTER TABLE account ALTER COLUMN note TYPE VARCHAR(20)",
        "ALTER TABLE account ADD UNIQUE (id) DEFERRABLE",
        "ALTER TABLE account ADD COLUMN owner TEXT NOT NULL;
         CREATE FUNCTION owned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.owner := 'me'; RETURN NEW; END $$;
         CREATE TRIGGER owned BEFORE INSERT ON account FOR EACH ROW EXECUTE FUNCTION owned()",
    ] {
        let db = database().await;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db.pool).await.unwrap();
        assert_eq!(check(&db.pool).await.problems, [], "{sql}");
        assert_eq!(applied(&db.pool).await, State::Live, "{sql}");
    }
}

/// What may stop it, or cost it rows, is a warning.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_stop_it() {
    for (sql, column, problem, cure) in [
        (
            "ALTER TABLE account ALTER COLUMN amount DROP NOT NULL",
            Some("amount"),
            "column `amount` of `account` may be NULL, but its field is no `Option`",
            "ALTER TABLE account ALTER COLUMN amount SET NOT NULL;",
        ),
        (
            "ALTER TABLE account ALTER COLUMN note SET NOT NULL",
            Some("note"),
            "column `note` of `account` is NOT NULL, but its field is an `Option`",
            "ALTER TABLE account ALTER COLUMN note DROP NOT NULL;",
        ),
        (
            "CREATE FUNCTION ours() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
             CREATE TRIGGER ours BEFORE UPDATE ON account FOR EACH ROW EXECUTE FUNCTION ours()",
            Some("ours"),
            "trigger ours of `account` may change each row before it is written",
            "DROP TRIGGER ours ON account;",
        ),
        ("ALTER TABLE account SET UNLOGGED", None, "table `account` is UNLOGGED", "ALTER TABLE account SET LOGGED;"),
        (
            "CREATE RULE twice AS ON DELETE TO opening DO ALSO NOTIFY account",
            Some("twice"),
            "rule twice of `opening` changes what handlers write, and a rebuild refuses it",
            "DROP RULE twice ON opening;",
        ),
    ] {
        let db = database().await;
        sqlx::raw_sql(sql).execute(&db.pool).await.unwrap();
        let found = check(&db.pool).await;
        assert_eq!(found.problems, [], "{sql}");
        let [one] = &found.warnings[..] else { panic!("{sql}: {found:#?}") };
        assert_eq!(one.constraint.as_deref(), column, "{sql}");
        assert!(one.problem.starts_with(problem) && one.cure.starts_with(cure), "{one:?}");
        sqlx::raw_sql(AssertSqlSafe(one.cure.clone())).execute(&db.pool).await.unwrap();
        assert_eq!(check(&db.pool).await.warnings, [], "{cure}");
    }
}

/// The role of the service counts, not the owner of the tables.
#[tokio::test(flavor = "multi_thread")]
async fn rights_and_row_security() {
    let db = database().await;
    let role = format!("clerk_{}", Uuid::new_v4().simple());
    let as_owner = |sql: String| {
        let pool = db.pool.clone();
        async move { sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.map(drop).unwrap() }
    };
    as_owner(format!(
        "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
         REVOKE UPDATE, DELETE, TRUNCATE ON account FROM {role}; REVOKE ALL ON opening FROM {role};
         GRANT INSERT ON opening TO {role}"
    ))
    .await;
    let options = db.url.parse::<PgConnectOptions>().unwrap().username(&role);
    let clerk = PgPoolOptions::new().max_connections(5).connect_with(options).await.unwrap();
    let found = check(&clerk).await;
    let said: Vec<_> = found.problems.iter().map(|one| (one.problem.as_str(), one.cure.as_str())).collect();
    assert_eq!(
        said,
        [(
            &*format!("role {role} lacks UPDATE, DELETE on `account`, which the handlers need"),
            &*format!("GRANT UPDATE, DELETE ON account TO {role};")
        )]
    );
    // A table of handlers that are not of rows may be one that is only inserted into.
    assert_eq!(found.warnings, []);
    for cure in found.problems.into_iter().map(|one| one.cure) {
        as_owner(cure).await;
    }
    let found = check(&clerk).await;
    assert_eq!((found.problems, found.warnings), (vec![], vec![]));

    as_owner("ALTER TABLE account ENABLE ROW LEVEL SECURITY".to_owned()).await;
    assert_eq!(check(&db.pool).await.problems, []);
    let found = check(&clerk).await.problems;
    let [one] = &found[..] else { panic!("{found:?}") };
    assert!(one.problem.starts_with(&format!("row security of `account` applies to role {role}: ")), "{one:?}");
    assert_eq!(one.cure, format!("ALTER ROLE {role} BYPASSRLS;"));
    as_owner(one.cure.clone()).await;
    assert_eq!(check(&clerk).await.problems, []);

    // Row security also applies to the table's owner if it is forced.
    as_owner(format!(
        "ALTER ROLE {role} NOBYPASSRLS; ALTER TABLE account OWNER TO {role}; ALTER TABLE account FORCE ROW LEVEL SECURITY"
    ))
    .await;
    let found = check(&clerk).await.problems;
    let [one] = &found[..] else { panic!("{found:?}") };
    assert_eq!(one.cure, "ALTER TABLE account NO FORCE ROW LEVEL SECURITY;");
    sqlx::raw_sql(AssertSqlSafe(one.cure.clone())).execute(&clerk).await.unwrap();
    assert_eq!(check(&clerk).await.problems, []);
    // Who may not run the projections asks for others.
    as_owner(format!("REVOKE UPDATE ON readviews FROM {role}; REVOKE ALL ON account, opening FROM {role}")).await;
    assert_eq!(check(&clerk).await.problems, []);
    clerk.close().await;
    as_owner(format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// A rebuild and a reset name the same remedy for a foreign key.
#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_of_a_foreign_key_is_to_drop_it() {
    let db = database().await;
    sqlx::raw_sql("CREATE TABLE visit (account UUID CONSTRAINT visit_account REFERENCES account)")
        .execute(&db.pool)
        .await
        .unwrap();
    let manager = ProjectionManager::new(db.pool.clone(), projections![Accounts]).unwrap();
    let cure = "ALTER TABLE visit DROP CONSTRAINT visit_account;";
    let [found] = &manager.check().await.unwrap().problems[..] else { panic!() };
    assert_eq!(found.cure.replace('"', ""), cure);
    let refused = manager.rebuild("accounts", Default::default(), &mut |_| {}).await.unwrap_err().to_string();
    assert!(refused.contains(cure), "{refused}");
    let refused = manager.reset_projection("accounts").await.unwrap_err().to_string();
    assert!(refused.contains(&found.cure), "{refused}");
    sqlx::raw_sql(cure).execute(&db.pool).await.unwrap();
    assert_eq!(manager.check().await.unwrap().problems, []);
    manager.rebuild("accounts", Default::default(), &mut |_| {}).await.unwrap();
    manager.reset_projection("accounts").await.unwrap();
}

/// The tables of DanceFinder are as `check` wants them.
#[tokio::test]
async fn the_read_models_of_dancefinder() {
    let db = TestDatabase::new().await;
    let manager = ProjectionManager::new(db.pool.clone(), dancefinder_projections::projections()).unwrap();
    let found = manager.check().await.unwrap();
    assert_eq!((found.problems, found.warnings), (vec![], vec![]));
}
