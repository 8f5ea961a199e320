// Gives every role of docker-compose.yml its certificate, once. Safe to repeat: a role that has one keeps it.
//
//   node docker/enrol.mjs API_URL API_TOKEN_FILE SITE/ROLE/NAME=FOLDER …
//
// It holds the API's token and reaches every role's folder, which only a single host allows. Where sites are apart, each role
// enrols itself with a one-time token (`leeward machine enroll`).
import { existsSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { enrol } from "../dist/adapters/pki/enrol.js";

const [apiUrl, tokenFile, ...roles] = process.argv.slice(2);
const WAIT_SECONDS = 120;

for (let waited = 0; !existsSync(tokenFile); waited++) {
  if (waited === WAIT_SECONDS) throw new Error(`"${tokenFile}" is not there: did control start?`);
  await sleep(1000);
}
const authorization = `Bearer ${readFileSync(tokenFile, "utf8").trim()}`;

for (const one of roles) {
  const [identity, folder] = one.split("=");
  const [site, role, name] = identity.split("/");
  if (existsSync(`${folder}/cert.pem`)) continue;
  const response = await fetch(`${apiUrl}/v1/machines/tokens`, {
    method: "POST",
    headers: { authorization, "content-type": "application/json" },
    body: JSON.stringify({ site, role, name }),
  });
  if (!response.ok) throw new Error(`No token for ${identity}: ${response.status} ${await response.text()}`);
  const { token } = await response.json();
  await enrol({ apiUrl, token, site, role, name, dir: folder });
  console.log(`enrolled ${identity}`);
}
