// The server's API. The token comes after # in the address, and stays in this tab.

const KEY = "fewstep-token";
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname);
}

async function ask(path, options = {}) {
  const headers = { "content-type": "application/json" };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const body = await answer.json().catch(() => ({ error: `The server answered ${answer.status}.` }));
  if (answer.ok) return body;
  const after = answer.headers.get("retry-after");
  const error = new Error(sentence(body.error));
  error.after = after ? Number(after) : null;
  error.status = answer.status;
  throw error;
}

function sentence(text) {
  const said = String(text ?? "The server refused this");
  return `${said[0].toUpperCase()}${said.slice(1)}${/[.?!]$/.test(said) ? "" : "."}`;
}

export const models = () => ask("/api/models");

/** An answer of the API; a full queue is tried again a few times, as the server asks. */
export async function post(verb, body, signal, tries = 4) {
  try {
    return await ask(`/api/${verb}`, { method: "POST", body: JSON.stringify(body), signal });
  } catch (error) {
    // A full queue is worth another try; a request that took too long would only take as long again.
    if (!error.after || error.status !== 429 || tries <= 1) throw error;
    await new Promise((done) => setTimeout(done, 1000 * error.after));
    signal?.throwIfAborted();
    return post(verb, body, signal, tries - 1);
  }
}
