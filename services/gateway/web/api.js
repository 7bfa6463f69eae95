// Calls of the JSON API. Tokens live in this tab only and are renewed once when one has expired.
const KEY = 'cauce.tokens';

export class ApiError extends Error {
  constructor(status, code, detail) {
    super(detail || code || `HTTP ${status}`);
    this.status = status;
    this.code = code;
  }
}

const load = () => JSON.parse(sessionStorage.getItem(KEY) || 'null');
export const isSignedIn = () => load() !== null;
export const forget = () => sessionStorage.removeItem(KEY);

async function send(method, path, body, token) {
  const headers = {};
  if (body) headers['Content-Type'] = 'application/json';
  if (token) headers.Authorization = `Bearer ${token}`;
  const r = await fetch(path, {method, headers, body: body && JSON.stringify(body), credentials: 'omit'});
  const json = await r.json().catch(() => ({}));
  if (!r.ok) throw new ApiError(r.status, json.code, json.detail);
  return json;
}

function keep(tokens) {
  sessionStorage.setItem(KEY, JSON.stringify({access: tokens.accessToken, refresh: tokens.refreshToken}));
}

export async function signIn(name, password) {
  keep(await send('POST', '/api/v1/login', {name, password, device: 'browser'}));
}

export async function signOut() {
  const tokens = load();
  forget();
  if (tokens) await send('POST', '/api/v1/logout', {}, tokens.access).catch(() => {});
}

export async function call(method, path, body) {
  const tokens = load();
  try {
    return await send(method, path, body, tokens && tokens.access);
  } catch (e) {
    if (e.status !== 401 || !tokens) throw e;
  }
  try {
    keep(await send('POST', '/api/v1/refresh', {refreshToken: tokens.refresh}));
  } catch (e) {
    if (e.status === 401) forget();
    throw e;
  }
  return send(method, path, body, load().access);
}
