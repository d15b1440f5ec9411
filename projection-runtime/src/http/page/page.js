// Asks the service where its projections stand, and shows it. What the server says only ever becomes textContent.

const POLL_MS = 2000;
const TIMEOUT_MS = 6000;
const ACT_TIMEOUT_MS = 120_000;
const HISTORY_MS = 600_000;
const GAP_MS = 20_000; // samples further apart than this are not joined by a line
const IN_STEP_SECONDS = 5; // who is so little behind keeps up: the verdict shall not flicker with every event
const STILL_SECONDS = 20;
const SILENT_SECONDS = 90; // a process tells of RabbitMQ at least every 35 s

const sources = {
  service: { path: "api/service" },
  projections: { path: "api/projections" },
  history: { path: "api/history" },
};
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

function eventsBehind({ events_behind, events_behind_capped }) {
  return `${events_behind_capped ? "more than " : ""}${plural(events_behind, "event")} behind`;
}

function command(...words) {
  return [sources.service.data?.service, ...words].filter(Boolean).join(" ");
}

function staleText({ handlers, other_code, tables }) {
  const changes = { changed: "has changed", added: "is new", removed: "is gone" };
  const parts = handlers.map(({ event, handler, change, behind }) => {
    const but = behind ? "" : ", but none of its events were applied yet";
    return `handler \`${handler}\` of ${event} ${changes[change]}${but}`;
  });
  if (other_code) parts.push("code beside its handlers has changed");
  if (tables) parts.push("its tables have changed");
  return parts.join("; ");
}

function staleMatters({ handlers, other_code, tables }) {
  return other_code || tables || handlers.some(({ behind }) => behind);
}

function howFar({ events, total, seconds, seconds_since_seen, stage }) {
  const parts = [`${count(events)} of ${plural(total, "event")}`];
  if (stage === "filling" && events > 0 && seconds > 0) {
    parts.push(`${count(events / seconds)} a second`);
    if (total > events) parts.push(`about ${duration(((total - events) * seconds) / events)} left`);
  }
  parts.push(`at it for ${duration(seconds, 0)}`);
  const silent = `last heard of ${duration(seconds_since_seen, 0)} ago: whoever did it may be gone`;
  if (seconds_since_seen > 60) parts.push(silent);
  return parts.join(", ");
}

// -- what it comes to ------------------------------------------------------------------------------------------------

// Worst first: how bad it is, its picture, and what the verdict says of one and of many.
const STANDINGS = {
  failed: ["bad", "bad", "has failed", "have failed"],
  trouble: ["bad", "bad", "is in trouble", "are in trouble"],
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
const isOf = (name) => (problem) => problem.startsWith(`${name}: `);

/** Those that cannot go on until someone mends what stopped one of them. */
function stuckOnes(projections) {
  const hasStopped = ({ state }) => ["failed", "paused"].includes(state);
  const stuck = new Set(projections.filter(hasStopped).map(({ name }) => name));
  for (let before = -1; before < stuck.size;) {
    before = stuck.size;
    const waiting = projections.filter(({ waits_for }) => waits_for?.some((other) => stuck.has(other)));
    for (const { name } of waiting) stuck.add(name);
  }
  return stuck;
}

/** All that is known of each projection, and how it stands. */
function views(status, problems, history) {
  const stuck = stuckOnes(status.projections);
  return status.projections.map((projection) => {
    const { name, state, seconds_behind } = projection;
    const view = {
      ...projection,
      problems: problems.filter(isOf(name)).map((problem) => problem.slice(name.length + 2)),
      stale: status.stale.find((stale) => stale.projection === name),
      rebuild: status.rebuilds.find((rebuild) => rebuild.name === name),
      history: history?.projections.find((columns) => columns.name === name),
      stuckAt: projection.waits_for?.filter((other) => stuck.has(other)) ?? [],
    };
    const counted = view.history?.events_behind.at(-1) ?? 0; // in full, where the other count stops
    if (view.events_behind_capped && counted > view.events_behind) {
      Object.assign(view, { events_behind: counted, events_behind_capped: false });
    }
    view.standing = standing(view);
    [view.level, view.icon] = STANDINGS[view.standing];
    view.keepsUp = ["behind", "waiting"].includes(view.standing) && seconds_behind < IN_STEP_SECONDS;
    [view.word, view.summary] = words(view);
    return view;
  });
}

function standing({ state, problems, stuckAt, stale, seconds_behind, history }) {
  if (state === "failed") return "failed";
  if (problems.length > 0) return "trouble";
  const lately = history?.events_per_second.slice(-3) ?? [];
  const hasStopped = lately.length === 3 && lately.every((n) => n === 0) && !sources.history.trouble;
  if (state === "behind" && seconds_behind > STILL_SECONDS && hasStopped) return "still";
  if (stuckAt.length > 0) return "stuck";
  if (["live", "behind", "waiting"].includes(state) && stale && staleMatters(stale)) return "stale";
  return state in STANDINGS ? state : "unknown";
}

/** The state, and a sentence that goes on from there. */
function words(view) {
  const lag = eventsBehind(view);
  const also = { trouble: "in trouble · ", stale: "may need a rebuild · " }[view.standing] ?? "";
  if (view.standing === "still") return ["does not move", `although it is ${lag}: look at the log of the service`];
  switch (view.state) {
    case "behind": {
      const { events_per_second = [], seconds_left = null } = view.history ?? {};
      const perSecond = events_per_second.at(-1) ?? 0;
      const parts = [lag];
      if (perSecond > 0) parts.push(`${rate(perSecond)} a second`);
      if (seconds_left !== null) parts.push(`about ${duration(seconds_left)} left`);
      return [`${also}catching up`, parts.join(", ")];
    }
    case "waiting": {
      const until = view.stuckAt.length > 0 ? `until ${view.stuckAt.join(", ")} can go on: look there` : lag;
      return [`${also}waits for ${view.waits_for.join(", ")}`, until];
    }
    case "paused": return [`${also}paused`, `by ${view.by} since ${utc(view.since)} (${ago(view.since)}); ${lag}`];
    case "failed": return ["failed", `at ${view.failure?.event_name ?? "an event"}; everything before it is applied`];
    case "retrying": return [`${also}retrying`, "the event that failed"];
    case "new": return [`${also}has not run yet`, ""];
    case "unknown": return ["not in this program", "but it has a row in the database"];
    default: return [also + view.state, ""];
  }
}

const isHeardOf = ({ seen_at }) => (serverNow() - new Date(seen_at)) / 1000 < SILENT_SECONDS;

function brokerTroubles(processes) {
  const connections = processes.filter(isHeardOf).flatMap(({ relay, consumer }) =>
    [["relay", relay?.connection], ["consumer", consumer.connection]].filter(([, connection]) => connection));
  const troubles = connections.flatMap(([part, { connected_since, blocked }]) =>
    !connected_since ? [`${part} not connected`] : blocked ? [`${part} blocked by the broker`] : []);
  return [...new Set(troubles)].join(", ");
}

/** The sentence at the top, how bad it is, and what to look at. */
function verdict(all, general, broker) {
  const ours = all.filter(({ standing }) => standing !== "unknown");
  const countsAs = ({ standing, keepsUp }) => (keepsUp ? "live" : standing);
  const parts = [];
  for (const [name, [, , one, many]] of Object.entries(STANDINGS)) {
    const n = all.filter((view) => countsAs(view) === name).length;
    const isAll = name === "live" && n === ours.length && n > 1;
    const who = isAll ? `All ${n} projections` : plural(n, "projection");
    if (n > 0) parts.push(`${parts.length === 0 ? who : n} ${n === 1 ? one : many}`);
  }
  const sentences = [parts.join(", ") || "There are no projections"];
  const levels = ours.map((view) => STANDINGS[countsAs(view)][0]);
  const notes = [];
  const note = (name, href, text, level, icon = level) => notes.push({ name, href, text, level, icon });
  if (general.length > 0) {
    sentences.unshift("The service is not well");
    for (const text of general) note("Service", "#footer", `: ${text}`, "bad");
  }
  for (const view of all.filter(({ level }) => ["bad", "warn"].includes(level))) {
    note(view.name, `#projection-${view.name}`, noteText(view), view.level, view.icon);
  }
  if (broker) {
    sentences.push("RabbitMQ is in trouble");
    note("RabbitMQ", "#rabbitmq", `: ${broker}`, "warn");
  }
  levels.push(...notes.map(({ level }) => level));
  return { text: sentences.join(". "), level: LEVELS.find((level) => levels.includes(level)) ?? "ok", notes };
}

function noteText({ standing, problems, word, summary }) {
  if (standing === "trouble") return `: ${problems.join("; ")}`;
  return standing === "stale" ? " may need a rebuild" : ` ${word} ${summary}`;
}

// -- the document: only what differs is touched, so focus, selection and what was typed stay -------------------------

const byId = (id) => document.getElementById(id);
const field = (node, name) => node.querySelector(`[data-field="${name}"]`);
const part = (node, name) => node.querySelector(`[data-part="${name}"]`);
const template = (name) => () => byId(`${name}-template`).content.firstElementChild.cloneNode(true);

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setTexts(node, texts) {
  for (const [name, text] of Object.entries(texts)) setText(field(node, name), text);
}

function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
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
  setChildren(parent, commands, ([when]) => when, template("command"), update);
}

function renderProjection(card, view) {
  const { name, failure, rebuild, stale, events_behind, seconds_behind } = view;
  card.dataset.state = view.state;
  setLevel(card, view.level, view.icon);
  setTexts(card, {
    state: view.word,
    summary: view.summary,
    behind: `${view.events_behind_capped ? "more than " : ""}${count(events_behind)}`,
    seconds: seconds_behind > 0 ? duration(seconds_behind) : "-",
    position: utcOfPosition(view.position),
    skipped: `${count(view.skipped_events)} (readview_skips says which and why)`,
  });
  part(card, "skipped").hidden = view.skipped_events === 0;
  setAttribute(field(card, "position"), "title", `${view.position}`);
  setLines(field(card, "problems"), view.problems);
  part(card, "loop").hidden = !view.problems.some((problem) => problem.startsWith("its loop"));
  for (const figure of card.querySelectorAll("figure")) renderChart(figure, view);

  part(card, "failure").hidden = !failure;
  if (failure) {
    setTexts(card, {
      event: failure.event_name,
      "event-id": failure.event_id,
      handler: failure.handler,
      attempts: count(failure.attempts),
      "failed-at": `${utc(failure.failed_at)} (${ago(failure.failed_at)})`,
      error: failure.error,
    });
    setCommands(field(card, "cures"), [
      ["After the fix", command("retry", name)],
      ["Where it can never be applied", command("skip", name, "--event", failure.event_id, '--reason ".."')],
    ]);
  }

  part(card, "rebuild").hidden = !rebuild;
  if (rebuild) {
    card.querySelector("progress").value = rebuild.total > 0 ? rebuild.events / rebuild.total : 0;
    setTexts(card, { stage: rebuild.stage, progress: howFar(rebuild) });
  }

  part(card, "stale").hidden = !stale;
  if (stale) {
    const matters = staleMatters(stale);
    setTexts(card, { stale: staleText(stale), "stale-meaning": matters
      ? "Its rows may be others than a rebuild would make."
      : "Its rows are right; the next start of the service writes that down." });
    setCommands(field(card, "stale-cures"), matters
      ? [["To make them anew", command("rebuild", name)], ["Where they are right", command("accept", name)]] : []);
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
  const isLag = figure.dataset.chart === "events_behind";
  const [what, format] = isLag ? ["Events behind", count] : ["Events a second", rate];
  const isEmpty = values.length === 0;
  setText(field(figure, "most"), isEmpty ? "not known yet" : `max ${format(most)}`);
  const told = isEmpty ? "not known yet" : `now ${format(values.at(-1))}, at most ${format(most)}`;
  setAttribute(figure.querySelector("svg"), "aria-label", `${what} of ${name} in the last 10 minutes: ${told}`);
}

function renderBroker({ relays, rabbitmq }) {
  byId("rabbitmq").hidden = relays.length + rabbitmq.length === 0;
  setLines(byId("relays"), relays.map((relay) => {
    const since = relay.events_behind > 0 ? `, for ${duration(relay.seconds_behind)}` : "";
    return `Relay to ${relay.exchange}: position ${utcOfPosition(relay.position)}, ${eventsBehind(relay)}${since}`;
  }), "p");
  setChildren(byId("processes"), rabbitmq, ({ id }) => id, template("process"), (card, process) => {
    const { broker, exchange, id, seen_at, relay, consumer } = process;
    const gone = isHeardOf(process) ? "" : "; it may be gone, and is forgotten after an hour";
    setTexts(card, { title: `${broker}, exchange ${exchange}`, said: `as process ${id} said ${ago(seen_at)}${gone}` });
    card.classList.toggle("old", gone !== "");
    const parts = [["consumer", consumer, ["consumed", "ingested", "dead_lettered"]]];
    if (relay) parts.unshift(["relay", relay, ["published", "confirmed", "returned"]]);
    setChildren(card.querySelector("dl"), parts, ([name]) => name, template("connection"), renderConnection);
  });
}

function renderConnection(node, [name, status, counts]) {
  const { connected_since, blocked, last_trouble } = status.connection;
  const since = connected_since ? `connected since ${utc(connected_since)}` : "not connected";
  const called = { dead_lettered: "dead-lettered", returned: "wanted by no queue" };
  setLevel(node, connected_since && !blocked ? "ok" : "warn");
  setTexts(node, {
    part: name,
    connection: connected_since && blocked ? `blocked by the broker, ${since}` : since,
    counts: counts.map((what) => `${count(status[what])} ${called[what] ?? what}`).join(", "),
    trouble: last_trouble ? `last trouble ${utc(last_trouble.at)}: ${last_trouble.error}` : "",
  });
}

function renderActs(acts) {
  byId("acts").hidden = acts.length === 0;
  const key = ({ at, projection, act }) => `${at} ${projection} ${act}`;
  setChildren(byId("acts").querySelector("ul"), acts, key, template("act"), (item, act) => {
    setLevel(item, { done: "ok", failed: "bad", running: "busy" }[act.outcome] ?? "off");
    setTexts(item, {
      what: `${act.act} ${act.projection}: ${act.outcome}`,
      detail: act.detail ?? "",
      who: `${utc(act.at)} (${ago(act.at)}) by ${act.by}: ${act.reason}`,
    });
  });
}

/** Says what does not answer, and whether the rest of the page is old for that. */
function renderTroubles() {
  const { service, projections, history } = sources;
  const troubles = [service, projections, history].map(({ trouble }) => trouble).filter(Boolean);
  const byText = new Map(troubles.map((trouble) => [trouble.text, trouble]));
  const lines = [...byText.values()].map(({ text, since }) => `Since ${utc(since)} (${ago(since)}): ${text}`);
  const isOld = Boolean(service.trouble || projections.trouble);
  const last = Math.min(service.at ?? 0, projections.at ?? 0);
  const old = isOld && last > 0 ? `All below is old: it is from ${utc(last)}. ` : "";
  byId("trouble").hidden = troubles.length === 0;
  setLines(field(byId("trouble"), "troubles"), lines);
  setTexts(byId("trouble"), { old: `${old}This page asks again every 2 s.` });
  for (const id of ["main", "footer"]) byId(id).classList.toggle("old", isOld);
  byId("main").classList.toggle("old-charts", !isOld && Boolean(history.trouble));
  return isOld;
}

function render() {
  const isOld = renderTroubles();
  const [service, status, history] = [sources.service.data, sources.projections.data, sources.history.data];
  let said = { text: "Where the projections stand is not known", level: isOld ? "bad" : "off", notes: [] };
  if (status) {
    const problems = service?.problems ?? [];
    const all = views(status, problems, history);
    const general = problems.filter((problem) => !all.some(({ name }) => isOf(name)(problem)));
    if (!isOld) said = verdict(all, general, brokerTroubles(status.rabbitmq));
    setChildren(byId("projections"), all, ({ name }) => name, newCard, renderProjection);
    renderBroker(status);
    byId("unknown").hidden = status.unknown_events.length === 0;
    setTexts(byId("unknown"), { names: status.unknown_events.join(", ") });
  }
  if (service) {
    byId("token").hidden = !service.control;
    renderActs(service.acts);
    const commit = service.commit ? ` (${service.commit})` : "";
    const schema = service.schema_version === null ? "no schema" : `schema ${service.schema_version}`;
    const up = `up since ${utc(service.started_at)} (${ago(service.started_at)})`;
    const share = service.processes > 1 ? `, one of ${service.processes} processes: applies ${service.applies.join(", ")}` : "";
    const about = `${service.service} ${service.version}${commit}, ${schema}, ${up}${share}`;
    setTexts(document, { service: service.service, about });
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
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(form, name, event.submitter);
  });
  return card;
}

function renderAct(details, { name, state, failure, rebuild }) {
  const { control, acts } = sources.service.data ?? {};
  details.hidden = !control || state === "unknown";
  if (details.hidden) return;
  const isFailed = Boolean(failure) && state !== "retrying";
  const isPaused = state === "paused";
  const offered = { retry: isFailed, skip: isFailed, pause: !isPaused, resume: isPaused, rebuild: true };
  const form = details.querySelector("form");
  form.dataset.event = failure?.event_id ?? "";
  for (const button of form.querySelectorAll("[data-act]")) {
    button.parentElement.hidden = !offered[button.dataset.act];
    button.disabled = "busy" in form.dataset || (button.dataset.act === "rebuild" && Boolean(rebuild));
  }
  const last = acts.find(({ projection }) => projection === name);
  const how = last && [last.outcome, last.detail].filter(Boolean).join(", ");
  setTexts(details, { "last-act": last ? `Last: ${last.act} by ${last.by} ${ago(last.at)}: ${how}` : "" });
}

async function act(form, name, button) {
  const output = form.querySelector("output");
  const say = (text, isError = false) => {
    output.toggleAttribute("data-error", isError);
    setText(output, text);
  };
  if (token.value.trim() === "") {
    say("The admin token is missing: it goes into the field above the projections.", true);
    token.focus();
    return;
  }
  const body = { by: form.elements.by.value.trim(), reason: form.elements.reason.value.trim() };
  if (button.dataset.act === "skip") body.event = form.dataset.event;
  form.dataset.busy = "";
  for (const each of form.querySelectorAll("button")) each.disabled = true;
  say(`${button.textContent} ..`);
  try {
    const answer = await ask(`api/projections/${encodeURIComponent(name)}/${button.dataset.act}`, ACT_TIMEOUT_MS, {
      method: "POST",
      headers: { Authorization: `Bearer ${token.value.trim()}`, "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    say(answer.body.text);
  } catch (error) {
    say(error.message, true);
  }
  delete form.dataset.busy;
  await polling; // that one may have asked before
  await poll();
  if (document.activeElement === document.body) (button.checkVisibility() ? button : output).focus();
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
  if (!response.ok) throw new Error(`The service answers ${response.status}: ${body?.error ?? response.statusText}`);
  if (body === null) throw new Error(`/${path} is no JSON`);
  return { body, date: Date.parse(response.headers.get("Date")) };
}

async function refresh(source) {
  try {
    const { body, date } = await ask(source.path, TIMEOUT_MS);
    if (Math.abs(date - serverNow()) > 2000) clockSkew = date - Date.now(); // it counts whole seconds
    Object.assign(source, { data: body, at: serverNow(), trouble: null });
  } catch (error) {
    source.trouble = { text: error.message, since: source.trouble?.since ?? serverNow() };
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
