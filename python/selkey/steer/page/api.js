// Requests to the server and its stream of states. The state is the server's; the page only shows it.

const secret = new URLSearchParams(location.search).get("token");

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(secret ? { "X-Selkey-Token": secret } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Failure("The server cannot be reached: is selkey steer still running?", 0);
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Failure(body.error ?? `The server answered ${response.status}.`, response.status);
  return body;
}

export function get(name, query = {}, signal = undefined) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  return request(`/api/${name}?${new URLSearchParams(given)}`, { signal });
}

export function post(name, body = {}) {
  return request(`/api/${name}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
}

// Calls `onState(state, isFirst)` for every state and `onConnection(isThere, sentence)`; comes back by itself when the connection was lost.
// A hidden tab listens to nothing: browsers allow six streams to one server, over all tabs.
export function listen(onState, onConnection) {
  let source = null;
  let timer = null;

  function connect() {
    clearTimeout(timer);
    source?.close();
    source = new EventSource(`/api/events${secret ? `?token=${encodeURIComponent(secret)}` : ""}`);
    let isFirst = true;
    source.addEventListener("state", (event) => {
      onConnection(true);
      onState(JSON.parse(event.data), isFirst);
      isFirst = false;
    });
    source.addEventListener("loading", () => onConnection(false, "The model is being loaded…"));
    source.addEventListener("failed", (event) => onConnection(false, JSON.parse(event.data).error));
    source.onerror = () => {
      source.close();
      onConnection(false);
      timer = setTimeout(connect, 700);
    };
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return connect();
    clearTimeout(timer);
    source?.close();
  });
  connect();
}
