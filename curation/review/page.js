const $ = (id) => document.getElementById(id);
const SERVED = !$("data"); let DATA;
const KEY = "reviewer"; let at = 0; const made = [];
const text = (tag, content, cls) => { const e = document.createElement(tag); e.textContent = content; if (cls) e.className = cls; return e; };
try { $("who").value = localStorage.getItem(KEY) || ""; } catch (e) {}
$("who").onchange = () => { try { localStorage.setItem(KEY, $("who").value); } catch (e) {} draw(); };
$("open").onchange = draw;
const mine = (item) => item.reviews.find((r) => r.reviewer === $("who").value.trim());
function card(item, number) {
  const box = document.createElement("article"); box.id = "n" + number; const said = mine(item); if (said) box.classList.add(said.verdict);
  const left = document.createElement("div"), right = document.createElement("div");
  if (item.video) { const v = document.createElement("video"); v.src = item.video.split("/").map(encodeURIComponent).join("/"); v.controls = true; v.loop = true; v.preload = "none"; v.poster = ""; left.append(v); }
  const strip = document.createElement("img"); strip.className = "strip"; strip.src = item.strip; strip.alt = "frames of " + item.id; right.append(strip);
  right.append(text("div", item.prompt || "(no prompt)"), text("div", `${item.id} · ${item.task} · stage ${item.stage}, step ${item.step} · seed ${item.seed}`, "soft"));
  for (const f of item.flags) right.append(text("div", `⚑ ${f.issue}: ${f.reason}`, "flag"));
  const names = Object.keys(item.scores); if (names.length) { const t = document.createElement("table");
    for (const n of names) { const r = t.insertRow(); r.insertCell().textContent = n; r.insertCell().textContent = item.scores[n] == null ? "–" : item.scores[n].toPrecision(3);
      r.insertCell().textContent = item.quantiles[n] != null ? `above ${(100 * item.quantiles[n]).toFixed(0)} % of real clips` : "no real clip to compare with"; } right.append(t); }
  const row = document.createElement("div"); row.className = "row";
  const issue = document.createElement("select"); for (const i of DATA.issues) issue.append(new Option(i, i)); issue.value = (said && said.issue) || (item.flags[0] && item.flags[0].issue) || "other";
  const from = document.createElement("input"), to = document.createElement("input"), note = document.createElement("input");
  for (const [e, p, v] of [[from, "from", said && said.frame_start], [to, "to", said && said.frame_end]]) { e.type = "number"; e.min = 0; e.placeholder = p; e.title = "frames; empty = the whole clip"; if (v != null) e.value = v; }
  note.className = "note"; note.placeholder = "note"; if (said && said.note) note.value = said.note;
  const say = (verdict) => send(item, { negative_id: item.id, verdict, issue: verdict === "negative" ? issue.value : null, frame_start: from.value === "" ? null : +from.value, frame_end: to.value === "" ? null : +to.value, note: note.value || null });
  item.say = say;
  for (const [v, label] of [["negative", "✗ negative"], ["fine", "✓ fine"], ["skip", "skip"]]) { const b = text("button", label); b.onclick = () => { at = number; say(v); }; row.append(b); }
  row.append(issue, from, to, note); right.append(row);
  if (item.reviews.length) right.append(text("div", item.counts_as ? `counts as ${item.counts_as}` : "counted again when this page is loaded", "said"));
  for (const r of item.reviews) right.append(text("div", `${r.reviewer}: ${r.verdict}${r.issue ? ", " + r.issue : ""}${r.note ? " — " + r.note : ""}`, "said"));
  box.append(left, right); return box;
}
async function send(item, row) {
  row.reviewer = $("who").value.trim(); if (!row.reviewer) { $("who").focus(); alert("Who is reviewing? Write a name above."); return; }
  if (SERVED) { const answer = await fetch("reviews", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify([row]) });
    if (!answer.ok) { alert(await answer.text()); return; } }
  made.push(row); item.counts_as = null; item.reviews = item.reviews.filter((r) => r.reviewer !== row.reviewer).concat([row]); at = Math.min(at + 1, DATA.items.length - 1); draw(); show();
}
function draw() {
  if (!DATA) return;
  const done = DATA.items.filter(mine).length; $("bar").max = DATA.items.length || 1; $("bar").value = done; $("count").textContent = `${done} of ${DATA.items.length} reviewed`;
  $("list").replaceChildren(...DATA.items.map((item, n) => ($("open").checked && mine(item)) ? document.createTextNode("") : card(item, n)));
  if (!DATA.items.length) $("list").append(text("p", "Nothing was gathered.")); mark();
}
const mark = () => document.querySelectorAll("article").forEach((e) => e.classList.toggle("at", e.id === "n" + at));
function show() { mark(); const e = $("n" + at); if (e) e.scrollIntoView({ block: "nearest" }); }
document.onkeydown = (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.metaKey || event.ctrlKey || !DATA) return;
  const item = DATA.items[at], keys = { j: () => { at = Math.min(at + 1, DATA.items.length - 1); show(); }, k: () => { at = Math.max(at - 1, 0); show(); },
    x: () => item.say("negative"), f: () => item.say("fine"), s: () => item.say("skip"),
    " ": () => { const v = document.querySelector("#n" + at + " video"); if (v) v.paused ? v.play() : v.pause(); } };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); } };
$("csv").onclick = () => { const head = ["negative_id", "verdict", "issue", "frame_start", "frame_end", "reviewer", "note"];
  // as `escaped` in curation/review/spreadsheet.py
  const safe = (v) => typeof v === "string" ? v.replace(/^(?='*[=+\-@＝＋－＠\t\r\n])|(?<=[;\t\r\n])(?='*[=+\-@＝＋－＠])/g, "'") : v;
  const quote = (v) => v == null ? "" : '"' + String(safe(v)).replaceAll('"', '""') + '"';
  const blob = new Blob([[head.join(","), ...made.map((r) => head.map((h) => quote(r[h])).join(","))].join("\n")], { type: "text/csv" });
  const a = document.createElement("a"); a.href = URL.createObjectURL(blob); a.download = "reviews.csv"; a.click(); };
async function start() {
  try {
    const answer = SERVED ? await fetch("data.json") : null;
    if (answer && !answer.ok) throw new Error(await answer.text());
    DATA = answer ? await answer.json() : JSON.parse($("data").textContent);
  } catch (e) { $("list").append(text("p", e.message)); return; }
  $("title").textContent = DATA.title; $("csv").hidden = SERVED; draw();
}
start();
