// Asks the service where its projections stand, and shows it. What the server says only ever becomes textContent.

const POLL_MS = 2000;
const TIMEOUT_MS = 6000;
const ACT_TIMEOUT_MS = 120_000;
const HISTORY_MS = 600_000;
const GAP_MS = 20_000; // samples further apart than this are not joined by a line
const IN_STEP_SECONDS = 5; // who is so little behind keeps up: the verdict shall not flicker with every event
const STILL_SECONDS = 20;
const LOST_SECONDS = 30; // a rebuild tells of itself each second
const SILENT_SECONDS = 90; // a process tells of RabbitMQ at least every 35 s
const TOLD_MS = 15_000; // what came of an act is no news for longer
const ASKS_MS = 5000;
const HELD_MS = 2000; // so that no other button comes under a pointer that still clicks

const source = (name) => ({ path: `api/${name}` });
const sources = { service: source("service"), projections: source("projections"), history: source("history") };
let clockSkew = 0; // ages are by the server's clock

// -- words -----------------------------------------------------------------------------------------------------------

const count = (n) => Math.round(n).toLocaleString("en-US");
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));
const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
const serverNow = () => Date.now() + clockSkew;
const utc = (time) => `${new Date(time).toISOString().slice(0, 19).replace("T", " ")} UTC`;
const ago = (time) => `${duration(Math.max(0, serverNow() - new Date(time)) / 1000, 0)} ago`;
const utcOfPosition = (position) => (position === 0 ? "none" : utc(position / 1000));

function duration(seconds, digits = 1) {
  if (seconds < 120) return `${seconds.toFixed(digits)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}

const command = (...words) => [sources.service.data?.service, ...words].filter(Boolean).join(" ");
const upTo = ({ events_behind_capped }) => (events_behind_capped ? "more than " : "");
const eventsBehind = (view) => `${upTo(view)}${plural(view.events_behind, "event")} behind`;

function staleText({ handlers, other_code, tables, lookups, partitions }) {
  const changes = { changed: "has changed", added: "is new", removed: "is gone",
    version: "gets another version of its event, or other upcasts" };
  const parts = handlers.map(({ event, handler, change, behind }) => {
    const but = behind ? "" : ", but none of its events were applied yet";
    return `handler \`${handler}\` of ${event} ${changes[change]}${but}`;
  });
  if (other_code) parts.push("code beside its handlers has changed");
  if (tables) parts.push("its tables have changed");
  for (const name of lookups ?? []) parts.push(`it is built on rows of ${name} that have been rebuilt since`);
  if (partitions) {
    const then = plural(partitions, "partition");
    const until = "until a rebuild, programs with that number apply none of its events";
    parts.push(`it was applied in ${then}, and is to have another number: ${until}`);
  }
  return parts.join("; ");
}

const staleMatters = ({ handlers, other_code, tables, lookups, partitions }) =>
  lookups?.length > 0 ||
  other_code || tables || partitions || handlers.some(({ behind }) => behind);

const isLost = ({ seconds_since_seen }) => seconds_since_seen > LOST_SECONDS;

/** What is being made of the projection's rows, and how far that is. */
function rebuildTexts({ stage, events, total, seconds, seconds_since_seen: silent, session }) {
  const done = `${count(events)} of ${plural(total, "event")}`;
  if (silent > LOST_SECONDS && session !== null) {
    const end = `to end it: SELECT pg_terminate_backend(${session})`;
    const progress = `its process is frozen or cut off, as it seems: last heard of ${duration(silent, 0)} ago; ${end}`;
    return { rebuild: `is being made anew beside its live tables: ${stage}; ${done}`, progress };
  }
  if (silent > LOST_SECONDS) {
    const last = `interrupted, as it seems: last heard of ${duration(silent, 0)} ago`;
    const progress = `${last}; the next start of the service, or another rebuild, removes it`;
    return { rebuild: `a copy of its tables is left, with ${done}`, progress };
  }
  const isFilling = ["filling", "verifying"].includes(stage) && events > 0 && seconds > 0;
  const pace = isFilling ? `, ${count(events / seconds)} a second` : "";
  const left = isFilling && total > events ? `, about ${duration(((total - events) * seconds) / events)} left` : "";
  const rebuild = {
    verifying: "is being verified: nothing is changed",
    comparing: "its rows are compared with rows made anew", // by a rebuild or a verification
  }[stage] ?? `is being made anew beside its live tables: ${stage}`;
  return { rebuild, progress: `${done}${pace}${left}, at it for ${duration(seconds, 0)}` };
}

// -- what it comes to ------------------------------------------------------------------------------------------------

// Worst first: how bad it is, its picture, and what the verdict says of one and of many.
const STANDINGS = {
  failed: ["bad", "bad", "has failed", "have failed"],
  trouble: ["bad", "bad", "is in trouble", "are in trouble"],
  astray: ["bad", "bad", "is not of this store", "are not of this store"],
  trying: ["warn", "busy", "is trying again", "are trying again"],
  still: ["warn", "warn", "does not move", "do not move"],
  retrying: ["warn", "busy", "is retrying", "are retrying"],
  paused: ["warn", "paused", "is paused", "are paused"],
  stuck: ["warn", "wait", "waits", "wait"],
  stale: ["warn", "warn", "may need a rebuild", "may need a rebuild"],
  behind: ["busy", "busy", "is catching up", "are catching up"],
  waiting: ["busy", "wait", "waits", "wait"],
  new: ["off", "off", "has not run yet", "have not run yet"],
  live: ["ok", "ok", "is live", "are live"],
  unknown: ["off", "off", "is not in this program", "are not in this program"],
};
const LEVELS = ["bad", "warn", "busy", "off", "ok"];
const isOf = (name) => (text) => text.startsWith(`${name}:`); // or one of its partitions, `band:1/4: ..`
const without = (name, text) => (text.startsWith(`${name}: `) ? text.slice(name.length + 2) : text);

// What this page remembers of each projection: its state, since when, and what was last done about it from here.
const memories = { __proto__: null };
const memoryOf = (name) => (memories[name] ??= {});

/** All that is known of each projection, and how it stands. */
function views({ projections, stale, rebuilds }, service, history) {
  // Those that cannot go on until someone mends what stopped one of them.
  const hasStopped = ({ state }) => ["failed", "paused"].includes(state);
  const stuck = new Set(projections.filter(hasStopped).map(({ name }) => name));
  for (const _ of projections) {
    for (const { name, waits_for } of projections) if (waits_for?.some((other) => stuck.has(other))) stuck.add(name);
  }
  return projections.map((projection) => {
    const { name, state } = projection;
    const texts = (all = []) => all.filter(isOf(name)).map((text) => without(name, text));
    const memory = memoryOf(name);
    if (memory.state !== state) Object.assign(memory, { state, since: memory.state ? serverNow() : 0 });
    const lastAct = service?.acts.find((act) => act.projection === name);
    const view = {
      ...projection,
      problems: texts(service?.problems),
      troubles: texts(service?.troubles),
      stale: stale.find((stale) => stale.projection === name),
      rebuild: rebuilds.find((rebuild) => rebuild.name === name),
      history: history?.projections.find((columns) => columns.name === name),
      madeOf: service?.projections?.find((described) => described.name === name),
      stuckAt: projection.waits_for?.filter((other) => stuck.has(other)) ?? [],
    };
    const changed = Math.max(memory.since, new Date(lastAct?.at ?? 0));
    const lately = view.history?.events_per_second.filter((_, i) => new Date(history.at[i]) > changed).slice(-3) ?? [];
    view.isStill = lately.length === 3 && lately.every((n) => n === 0) && !sources.history.trouble;
    const counted = view.history?.events_behind.at(-1) ?? 0; // in full, where the other count stops
    if (view.events_behind_capped && counted > view.events_behind) {
      Object.assign(view, { events_behind: counted, events_behind_capped: false });
    }
    view.standing = standing(view);
    [view.level, view.icon] = STANDINGS[view.standing];
    [view.word, view.summary] = words(view);
    const waits = view.stuckAt.length > 0 ? view.stuckAt : view.waits_for;
    view.waits = view.word.endsWith("waits for") ? waits : [];
    memory.view = view;
    return view;
  });
}

function standing({ state, failure, problems, troubles, stuckAt, stale, seconds_behind, isStill }) {
  const keepsUp = seconds_behind < IN_STEP_SECONDS;
  if (state === "failed" || (state === "paused" && failure)) return "failed";
  if (problems.length > 0) return "trouble";
  if (troubles.length > 0 && !keepsUp) return "trying";
  if (state === "behind" && seconds_behind > STILL_SECONDS && isStill) return "still";
  if (stuckAt.length > 0) return "stuck";
  if (["live", "behind", "waiting"].includes(state) && stale && staleMatters(stale)) return "stale";
  if (["behind", "waiting"].includes(state) && keepsUp) return "live";
  return state in STANDINGS ? state : "unknown";
}

/** How it stands, and a sentence that goes on from there. */
function words(view) {
  const { events_per_second = [], seconds_left = null } = view.history ?? {};
  const lag = eventsBehind(view);
  const pace = [lag];
  if (events_per_second.at(-1) > 0) pace.push(`${rate(events_per_second.at(-1))} a second`);
  if (seconds_left !== null) pace.push(`about ${duration(seconds_left)} left`);
  const stopped = view.partitions?.filter(({ failure }) => failure).length;
  const rest = stopped ? `in ${stopped} of ${plural(view.partitions.length, "partition")}; the others go on` : "";
  const failed = `at ${view.failure?.event_name ?? "an event"}; ${rest || "everything before it is applied"}`;
  const paused = view.since ? `by ${view.by} since ${utc(view.since)} (${ago(view.since)})` : "";
  const [word, summary] = {
    behind: ["catching up", pace.join(", ")],
    waiting: ["waits for", view.stuckAt.length > 0 ? "" : lag],
    paused: view.failure ? ["paused, failed", `${failed}; paused ${paused}`] : ["paused", `${paused}; ${lag}`],
    failed: ["failed", failed],
    retrying: ["retrying", "the event that failed"],
    astray: ["not of this store", "which does not have the event of its position"],
    new: ["has not run yet", ""],
    unknown: ["not in this program", "but it has a row in the database"],
  }[view.state] ?? [view.state, ""];
  const inTrouble = (trouble) => ({
    behind: [trouble, summary],
    waiting: [`${trouble}, ${word}`, summary],
  }[view.state] ?? [trouble, summary && `${word} ${summary}`]);
  return {
    live: ["live", ""],
    trouble: inTrouble("in trouble"),
    trying: inTrouble("trying again"),
    still: ["does not move", `although it is ${lag}: look at the log of the service`],
    stale: [`may need a rebuild · ${word}`, summary],
  }[view.standing] ?? [word, summary];
}

const isHeardOf = ({ seen_at }) => (serverNow() - new Date(seen_at)) / 1000 < SILENT_SECONDS;

function brokerTroubles(processes) {
  const connections = processes.filter(isHeardOf).flatMap(({ relay, stream, consumer }) =>
    [["relay", relay?.connection], ["stream", stream?.connection], ["consumer", consumer.connection]].filter(([, connection]) => connection));
  const troubles = connections.flatMap(([part, { connected_since, blocked }]) =>
    !connected_since ? [`${part} not connected`] : blocked ? [`${part} blocked by the broker`] : []);
  return [...new Set(troubles)].join(", ");
}

/** The sentence at the top, how bad it is, and what to look at. */
function verdict(all, general, broker, warnings) {
  const ours = all.filter(({ standing }) => standing !== "unknown");
  const parts = [];
  for (const [name, [, , one, many]] of Object.entries(STANDINGS)) {
    const n = all.filter(({ standing }) => standing === name).length;
    const isAll = name === "live" && n === ours.length && n > 1;
    const who = isAll ? `All ${n} projections` : plural(n, "projection");
    if (n > 0) parts.push(`${parts.length === 0 ? who : n} ${n === 1 ? one : many}`);
  }
  const sentences = [parts.join(", ") || "There are no projections"];
  const levels = ours.map(({ level }) => level);
  const notes = [];
  const note = (name, href, text, level, icon = level) => notes.push({ name, href, text, level, icon });
  if (general.length > 0) {
    sentences.unshift("The service is not well");
    for (const text of general) note("Service", "#footer", `: ${text}`, "bad");
  }
  for (const { projection, problem, remedy } of warnings.filter(({ blocks_readiness }) => !blocks_readiness)) {
    const href = projection ? `#projection-${projection}` : "#footer";
    note(projection ?? "Event store", href, `: ${problem}; ${remedy}`, "warn");
  }
  for (const view of all.filter(({ level }) => ["bad", "warn"].includes(level))) {
    note(view.name, `#projection-${view.name}`, noteText(view), view.level, view.icon);
  }
  if (broker) {
    sentences.push("RabbitMQ is in trouble");
    note("RabbitMQ", "#rabbitmq", `: ${broker}`, "warn");
  }
  const passing = all.filter(({ skipped_events }) => skipped_events > 0);
  if (passing.length > 0) {
    const n = passing.reduce((sum, { skipped_events }) => sum + skipped_events, 0);
    const all = `${plural(n, "event")} ${n === 1 ? "is" : "are"} passed by`;
    const which = passing.map(({ name, skipped_events }) => `${name} ${count(skipped_events)}`).join(", ");
    note(all, `#projection-${passing[0].name}`, `: ${which}`, "info");
  }
  levels.push(...notes.map(({ level }) => level));
  return { text: sentences.join(". "), level: LEVELS.find((level) => levels.includes(level)) ?? "ok", notes };
}

function noteText({ standing, state, failure, problems, troubles, word, waits, summary }) {
  if (standing === "trouble") return `: ${problems.join("; ")}`;
  if (standing === "trying") return `: ${troubles.join("; ")}`;
  if (standing === "stale") return " may need a rebuild";
  if (standing === "failed" && state === "paused") return ` is paused, and has failed at ${failure.event_name}`;
  return ` ${[word, waits.join(", "), summary].filter(Boolean).join(" ")}`;
}

// -- the document: only what differs is touched, so focus, selection and what was typed stay -------------------------

const byId = (id) => document.getElementById(id);
const field = (node, name) => node.querySelector(`[data-field="${name}"]`);
const part = (node, name) => node.querySelector(`[data-part="${name}"]`);
const template = (name) => () => byId(`${name}-template`).content.firstElementChild.cloneNode(true);

/** Control characters and direction marks, which would hide or reorder what stands around them, as escapes. */
const acting = /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/gu;
const printable = (text) => `${text}`.replace(acting, (c) => (c === "\n" ? c : `\\u{${c.codePointAt(0).toString(16)}}`));
const setText = (node, value) => {
  const text = printable(value);
  if (node.textContent !== text) node.textContent = text;
};
const setAttribute = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value); };

function setTexts(node, texts) {
  for (const [name, text] of Object.entries(texts)) setText(field(node, name), text);
}

/** Shows a part of the card where there is something to be shown. */
function show(card, name, something) {
  part(card, name).hidden = !something;
  return Boolean(something);
}

function setLevel(node, level, icon = level) {
  node.dataset.level = level;
  setAttribute(node.querySelector("use"), "href", `#icon-${icon}`);
}

/** Makes the children of `parent` those of `items`: one stays the same element as long as its key is there. */
function setChildren(parent, items, keyOf, create, update) {
  const keys = new Set(items.map(keyOf));
  for (const child of [...parent.children]) if (!keys.has(child.dataset.key)) child.remove();
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const child = known.get(key) ?? create(item);
    known.delete(key);
    child.dataset.key = key;
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
    update(child, item);
  }
}

function setLines(parent, lines, tag = "li") {
  const create = () => document.createElement(tag);
  const update = (child, [, line]) => setText(child, line);
  setChildren(parent, lines.map((line, i) => [`${i}`, line]), ([i]) => i, create, update);
}

function setCommands(parent, commands) {
  const update = (child, [when, command]) => setTexts(child, { when, command });
  setChildren(parent, commands, ([, command]) => command, template("command"), update);
}

function renderProjection(card, view) {
  const { name, problems, failure, rebuild, stale, skipped_events, seconds_behind, madeOf } = view;
  card.dataset.state = view.state;
  setLevel(card, view.level, view.icon);
  setTexts(card, {
    state: view.word,
    summary: view.summary,
    behind: `${upTo(view)}${count(view.events_behind)}`,
    seconds: seconds_behind > 0 ? duration(seconds_behind) : "-",
    position: utcOfPosition(view.position),
    skipped: `${plural(skipped_events ?? 0, "event")} passed by:`,
  });
  setAttribute(field(card, "position"), "title", `${view.position}`);
  setChildren(field(card, "waits"), view.waits, (other) => other, () => document.createElement("a"), (link, other) => {
    setText(link, other);
    setAttribute(link, "href", `#projection-${other}`);
  });
  show(card, "skipped", skipped_events);
  for (const figure of card.querySelectorAll("figure")) renderChart(figure, view);

  setLines(field(card, "problems"), problems);
  setLines(field(card, "passing"), view.troubles);
  const sessions = new Set(problems.flatMap((problem) => problem.match(/(?<=session )\d+/g) ?? []));
  const ends = "Ends that session; what it has not committed is undone";
  setCommands(field(card, "sessions"), [...sessions].map((id) => [ends, `SELECT pg_terminate_backend(${id})`]));
  show(card, "loop", sessions.size === 0 && problems.some((problem) => problem.startsWith("its loop")));
  const mustResume = view.state === "paused" && sources.service.data?.control === false;
  setCommands(field(card, "resume"), mustResume ? [["To let it go on", command("resume", name)]] : []);

  if (show(card, "failure", failure)) {
    const { event_name, event_id, handler, attempts, error, failed_at, newer_version } = failure;
    const last = `${utc(failed_at)} (${ago(failed_at)})`;
    setTexts(card, { event_name, event_id, handler, attempts: count(attempts), failed_at: last, error });
    setCommands(field(card, "cures"), [
      ...(newer_version === null ? [["", command("retry", name)]] : []), // a newer program goes on by itself
      ["Where it can never be applied", command("skip", name, "--event", event_id, '--reason ".."')],
    ]);
  }
  if (show(card, "rebuild", rebuild)) {
    const bar = card.querySelector("progress");
    bar.hidden = isLost(rebuild);
    bar.value = rebuild.total > 0 ? rebuild.events / rebuild.total : 0;
    setTexts(card, rebuildTexts(rebuild));
  }
  if (show(card, "stale", stale)) {
    setTexts(card, { stale: staleText(stale) });
    show(card, "stale-right", !staleMatters(stale));
    show(card, "stale-wrong", staleMatters(stale));
    const cures = [["To make them anew", command("rebuild", name)], ["Where they are right", command("accept", name)]];
    setCommands(field(card, "stale-cures"), cures);
  }
  if (show(card, "made-of", madeOf)) {
    for (const kind of ["tables", "events", "after"]) setTexts(card, { [kind]: madeOf[kind].join(", ") || "none" });
  }
  renderAct(part(card, "act"), view);
}

function renderChart(figure, { name, history }) {
  const values = history?.[figure.dataset.chart] ?? [];
  const times = (sources.history.data?.at ?? []).map((at) => new Date(at).getTime());
  const start = (times.at(-1) ?? 0) - HISTORY_MS;
  const most = Math.max(0, ...values);
  const scale = Math.max(most, 10); // a few events are no mountain
  const runs = [];
  values.forEach((value, i) => {
    if (times[i] < start) return;
    if (runs.length === 0 || times[i] - times[i - 1] > GAP_MS) runs.push([]);
    runs.at(-1).push([(600 * (times[i] - start)) / HISTORY_MS, 100 - (100 * value) / scale].map((n) => n.toFixed(1)));
  });
  const line = (run) => run.map((point) => point.join(" ")).join("L");
  const lines = runs.map((run) => `M${line(run)}`);
  const areas = runs.map((run) => `M${run[0][0]} 100L${line(run)}L${run.at(-1)[0]} 100Z`);
  setAttribute(figure.querySelector(".line"), "d", lines.join(""));
  setAttribute(figure.querySelector(".area"), "d", areas.join(""));
  const format = figure.dataset.chart === "events_behind" ? count : rate;
  const isEmpty = values.length === 0;
  setText(field(figure, "most"), isEmpty ? "not known yet" : `max ${format(most)}`);
  const told = isEmpty ? "not known yet" : `now ${format(values.at(-1))}, at most ${format(most)}`;
  const what = `${field(figure, "what").textContent} of ${name} in the last 10 minutes`;
  setAttribute(figure.querySelector("svg"), "aria-label", `${what}: ${told}`);
}

function renderBroker({ relays, rabbitmq }) {
  byId("rabbitmq").hidden = relays.length + rabbitmq.length === 0;
  setLines(byId("relays"), relays.map((relay) => {
    const since = relay.events_behind > 0 ? `, for ${duration(relay.seconds_behind)}` : "";
    return `Relay to ${relay.target}: position ${utcOfPosition(relay.position)}, ${eventsBehind(relay)}${since}`;
  }), "p");
  setChildren(byId("processes"), rabbitmq, ({ id }) => id, template("process"), (card, process) => {
    const { broker, exchange, id, seen_at, relay, stream, consumer } = process;
    const gone = isHeardOf(process) ? "" : "; it may be gone, and is forgotten soon";
    setTexts(card, { title: `${broker}, exchange ${exchange}`, said: `as process ${id} said ${ago(seen_at)}${gone}` });
    card.classList.toggle("old", gone !== "");
    const parts = [["consumer", consumer, ["consumed", "ingested", "duplicates", "dead_lettered", "dead_letters"]]];
    const published = ["published", "confirmed", "returned"];
    if (stream) parts.unshift(["stream", stream, published]);
    if (relay) parts.unshift(["relay", relay, published]);
    setChildren(card.querySelector("dl"), parts, ([name]) => name, template("connection"), renderConnection);
  });
}

function renderConnection(node, [name, status, counts]) {
  const { host, connected_since, blocked, last_trouble } = status.connection;
  const deadLetters = status.newest_dead_letters ?? [];
  const to = host ? ` to ${host}` : "";
  const since = connected_since ? `connected${to} since ${utc(connected_since)}` : "not connected";
  const called = { dead_lettered: "dead-lettered", dead_letters: "dead letters now", returned: "wanted by no queue" };
  setLevel(node, connected_since && !blocked && !(status.dead_letters > 0) ? "ok" : "warn");
  setTexts(node, {
    part: name,
    connection: connected_since && blocked ? `blocked by the broker, ${since}` : since,
    counts: counts.map((what) => `${count(status[what])} ${called[what] ?? what}`).join(", "),
    trouble: [
      status.standby ? "another process consumes, and this one stands by" : "",
      last_trouble ? `last trouble ${utc(last_trouble.at)}: ${last_trouble.error}` : "",
      ...deadLetters.map(({ at, error }) => `dead letter ${utc(at)}: ${error}`),
    ].filter(Boolean).join("\n"),
  });
}

function renderActs(acts) {
  byId("acts").hidden = acts.length === 0;
  const key = ({ at, projection, act }) => `${at} ${projection} ${act}`;
  setChildren(byId("acts").querySelector("ul"), acts, key, template("act"), (item, act) => {
    // What is done may be so no more.
    setLevel(item, ...({ done: ["off", "ok"], failed: ["bad"] }[act.outcome] ?? ["busy"]));
    setTexts(item, {
      what: `${act.act} ${act.projection}${act.outcome === "done" ? "" : `: ${act.outcome}`}`,
      detail: act.detail,
      who: `${utc(act.at)} (${ago(act.at)}) by ${act.by}: ${act.reason}`,
    });
  });
}

/** Says what does not answer, and whether the rest of the page is old for that. */
function renderTroubles() {
  const { service, projections, history } = sources;
  const troubles = [service, projections, history].map(({ trouble }) => trouble).filter(Boolean);
  const byText = new Map(troubles.map((trouble) => [trouble.text, trouble]));
  const lines = [...byText.values()].map(({ text, since }) =>
    `Since ${utc(since)} (noticed by this page, ${ago(since)}): ${text}`);
  const isOld = Boolean(service.trouble || projections.trouble);
  const last = Math.min(service.at ?? 0, projections.at ?? 0);
  const old = isOld && last > 0 ? `All below is old: it is from ${utc(last)}. ` : "";
  const isAway = troubles.some(({ status }) => status === 503);
  const away = isAway ? "The service goes on by itself when the database is back. " : "";
  byId("trouble").hidden = troubles.length === 0;
  setLines(field(byId("trouble"), "troubles"), lines);
  setTexts(byId("trouble"), { old: `${away}${old}This page asks again every 2 s.` });
  for (const id of ["main", "footer"]) byId(id).classList.toggle("old", isOld);
  byId("main").classList.toggle("old-charts", !isOld && Boolean(history.trouble));
  return isOld;
}

function render() {
  const isOld = renderTroubles();
  const [service, status, history] = [sources.service.data, sources.projections.data, sources.history.data];
  let said = { text: "Where the projections stand is not known", level: isOld ? "bad" : "off", notes: [] };
  if (status) {
    const all = views(status, service, history);
    const general = (service?.problems ?? []).filter((problem) => !all.some(({ name }) => isOf(name)(problem)));
    if (!isOld) said = verdict(all, general, brokerTroubles(status.rabbitmq), status.warnings);
    setChildren(byId("projections"), all, ({ name }) => name, newCard, renderProjection);
    renderBroker(status);
    byId("unknown").hidden = status.unknown_events.length === 0;
    const more = status.unknown_events_capped ? ", and more" : "";
    setTexts(byId("unknown"), { names: status.unknown_events.join(", ") + more });
  }
  if (service) {
    byId("token").hidden = !service.control;
    byId("no-control").hidden = service.control;
    renderActs(service.acts);
    const { process, processes, applies, database, events_database } = service;
    const commit = service.commit ? ` (${service.commit})` : "";
    const up = `up since ${utc(service.started_at)} (${ago(service.started_at)})`;
    const share = processes > 1 ? `, one of ${processes}; it applies ${applies?.join(", ") || "none"}` : "";
    setTexts(document, {
      service: service.service,
      about: `${service.service} ${service.version}${commit}, schema ${service.schema_version}, ${up}`,
      process: process ? `this is process ${process}${share}` : "",
      database: database ? `database ${database}${events_database ? `, events in ${events_database}` : ""}` : "",
    });
  }
  const top = byId("top");
  setLevel(top, said.level);
  setText(field(top, "verdict"), said.text);
  const key = ({ name, text }) => (name === "Service" ? text : name);
  setChildren(field(top, "notes"), said.notes, key, template("note"), (item, note) => {
    setLevel(item, note.level, note.icon);
    setTexts(item, { name: note.name, text: note.text });
    setAttribute(field(item, "name"), "href", note.href);
  });
  document.title = `${said.text} · ${service?.service ?? "projections"}`;
  const colour = { ok: "green", bad: "red", warn: "orange", busy: "royalblue", off: "gray" }[said.level];
  const circle = `<circle cx="1" cy="1" r="1" fill="${colour}"/>`;
  const dot = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">${circle}</svg>`;
  setAttribute(document.querySelector("link[rel=icon]"), "href", `data:image/svg+xml,${encodeURIComponent(dot)}`);
  renderUpdated();
}

function renderUpdated() {
  if (sources.projections.at) setTexts(document, { updated: `updated ${ago(sources.projections.at)}` });
}

// -- acting ----------------------------------------------------------------------------------------------------------

// Where storage is forbidden, the fields hold what was typed until the page is left.
const remembered = (key) => { try { return sessionStorage.getItem(key) ?? ""; } catch { return ""; } };
const remember = (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* as said */ } };

const token = document.querySelector('[name="token"]');
token.value = remembered("token");
token.addEventListener("input", () => remember("token", token.value));
token.form.addEventListener("submit", (event) => event.preventDefault());

function newCard({ name }) {
  const card = template("projection")();
  const form = card.querySelector("form");
  card.id = `projection-${name}`;
  card.dataset.projection = name;
  setTexts(card, { name });
  form.elements.by.value = remembered("by");
  form.elements.by.addEventListener("input", ({ target }) => {
    remember("by", target.value);
    for (const input of document.querySelectorAll('[name="by"]')) if (input !== target) input.value = target.value;
  });
  form.addEventListener("click", ({ target, detail }) => {
    if (target.matches("[data-act]") && detail < 2) act(form, name, target); // the second click of two is no other wish
  });
  return card;
}

/** What is told of an act is old where this is another. */
const mark = ({ standing, failure }) => `${standing} ${failure?.failed_at ?? ""}`;

function renderAct(details, view) {
  const memory = memoryOf(view.name);
  const { told } = memory;
  details.hidden = !sources.service.data?.control || view.state === "unknown";
  // An answer stays while it is news: until it is known what came of it, and then for a moment.
  if (told?.until) {
    const outcome = told.isPending && cameOf(told, view);
    if (outcome) Object.assign(told, { isPending: false, mark: mark(view), until: Date.now() + TOLD_MS }, outcome);
    told.mark ??= mark(view);
    if (!told.isPending && (told.mark !== mark(view) || Date.now() > told.until)) memory.told = null;
  }
  renderForm(details.querySelector("form"), memory);
}

/** What came of a retry or a rebuild; nothing where it is not known yet. */
function cameOf({ text, act, at, failure: before }, { name, state, failure, seconds_behind }) {
  if (act === "rebuild") {
    const done = sources.service.data.acts.find((act) => act.at === at && act.projection === name);
    if (!done) return !sources.service.trouble && { text: "how it went, the log says: the service was started again" };
    if (done.outcome === "running") return null;
    return { text: without(name, done.detail), isError: done.outcome === "failed", until: Date.now() + 4 * TOLD_MS };
  }
  if (!failure) return { text: `${text}: it worked: ${seconds_behind < IN_STEP_SECONDS ? "live" : "it goes on"}` };
  if (failure.failed_at === before.failed_at) return state === "paused" && { text: `${text}, once it is resumed` };
  if (state === "retrying") return null;
  const what = failure.event_id === before.event_id ? "failed again at the same event" : "failed at a later event";
  return { text: `${text}: ${what}, ${utc(failure.failed_at).slice(11)}` };
}

function renderForm(form, { view, told, isBusy }) {
  const output = form.querySelector("output");
  output.toggleAttribute("data-error", Boolean(told?.isError));
  setText(output, told?.text ?? "");
  const isFailed = Boolean(view.failure) && view.state !== "retrying";
  const isPaused = view.state === "paused";
  const offered = { retry: isFailed, skip: isFailed, pause: !isPaused, resume: isPaused, rebuild: true };
  const isRebuilt = Boolean(view.rebuild) && !isLost(view.rebuild);
  for (const button of form.querySelectorAll("[data-act]")) {
    const { act } = button.dataset;
    button.parentElement.hidden = !offered[act];
    button.disabled = !offered[act] || isBusy || (act === "rebuild" && isRebuilt);
  }
  show(form, "rebuild-plain", !isFailed);
  show(form, "rebuild-failed", isFailed);
}

/** Whether it has asked already. It asks for a moment. */
function isConfirmed(button, event) {
  const asked = button.dataset.asks === event;
  button.dataset.asks = event;
  setText(button, "Skip this event?");
  setTimeout(() => { delete button.dataset.asks; setText(button, "Skip"); }, ASKS_MS);
  return asked;
}

async function act(form, name, button) {
  if (![form, token.form].every((each) => each.reportValidity())) return;
  const memory = memoryOf(name);
  const { act } = button.dataset;
  const { by, reason } = form.elements;
  const { failure } = memory.view;
  if (act === "skip" && !isConfirmed(button, failure.event_id)) return;
  const body = { by: by.value.trim(), reason: reason.value.trim() };
  if (act === "skip") body.event = failure.event_id;
  const tell = (told, isBusy) => {
    Object.assign(memory, { told, isBusy });
    renderForm(form, memory);
  };
  tell({ text: `${act} ..` }, true);
  try {
    const { body: { text, at } } = await ask(`api/projections/${encodeURIComponent(name)}/${act}`, ACT_TIMEOUT_MS, {
      method: "POST",
      headers: { Authorization: `Bearer ${token.value.trim()}`, "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (reason.value.trim() === body.reason) reason.value = "";
    await polling; // that one may have asked before
    const told = { text: without(name, text.split("; /api")[0]), act, at, failure, until: Date.now() + TOLD_MS };
    tell({ ...told, isPending: ["retry", "rebuild"].includes(act) }, true);
    await poll();
    setTimeout(() => tell(memory.told, false), HELD_MS);
  } catch (error) {
    tell({ text: error.message, isError: true, until: Infinity }, false);
    await polling;
    await poll();
  }
  if (document.activeElement === document.body) (button.disabled ? form.querySelector("output") : button).focus();
}

document.addEventListener("click", async ({ target }) => {
  if (!target.matches("[data-copy]")) return;
  const code = target.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    target.textContent = "Copied";
  } catch { // there is no clipboard without https
    getSelection().selectAllChildren(code);
    target.textContent = "Selected";
  }
  setTimeout(() => { target.textContent = "Copy"; }, 2000);
});

// -- asking ----------------------------------------------------------------------------------------------------------

async function ask(path, timeout, options) {
  const signal = AbortSignal.timeout(timeout);
  const response = await fetch(path, { cache: "no-store", signal, ...options }).catch((error) => {
    const within = error.name === "TimeoutError" ? ` within ${timeout / 1000} s` : "";
    throw new Error(`The service does not answer${within}`);
  });
  const body = await response.json().catch(() => null);
  if (!response.ok) {
    const error = `The service answers ${response.status}: ${body?.error ?? response.statusText}`;
    const wrong = "The admin token is wrong. The service was started with another ADMIN_TOKEN.";
    throw new Error(response.status === 401 ? wrong : error, { cause: body && response.status });
  }
  if (body === null) throw new Error(`/${path} is no JSON`);
  return { body, date: Date.parse(response.headers.get("Date")) };
}

async function refresh(source) {
  try {
    const { body, date } = await ask(source.path, TIMEOUT_MS);
    if (Math.abs(date - serverNow()) > 2000) clockSkew = date - Date.now(); // it counts whole seconds
    Object.assign(source, { data: body, at: serverNow(), trouble: null });
  } catch (error) {
    source.trouble = { text: error.message, status: error.cause, since: source.trouble?.since ?? serverNow() };
  }
}

let polling = null;
let timer;

function poll() {
  clearTimeout(timer);
  polling ??= Promise.all(Object.values(sources).map(refresh)).then(render).catch((error) => {
    console.error(error);
    document.title = "This page does not understand the service: load it again";
    setTexts(document, { verdict: document.title });
    setLevel(byId("top"), "bad");
    byId("main").classList.add("old");
  }).finally(() => {
    polling = null;
    if (!document.hidden) timer = setTimeout(poll, POLL_MS);
  });
  return polling;
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
setInterval(renderUpdated, 1000);
poll();
