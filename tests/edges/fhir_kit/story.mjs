// Torbay asks, Exeter looks, decides by a patch and fetches: with the JavaScript client as it is. Prints what it saw as JSON.
import { readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";
import { Client } from "fhir-kit-client";

const { url, torbay, exeter, request, headers, numbers } = JSON.parse(readFileSync(0, "utf8"));
const client = (token) =>
  new Client({ baseUrl: `${url}/fhir`, customHeaders: { Authorization: `Bearer ${token}` } });
const named = (more = {}) => ({ headers: { "X-Request-Id": randomUUID(), ...more } });
const [sender, receiver] = [client(torbay), client(exeter)];
const seen = {};

seen.version = (await sender.capabilityStatement()).fhirVersion;
const receipt = await sender.operation({ name: "process-message", input: request, options: { headers } });
seen.receipt = receipt.entry[0].resource.response.code;

const wanted = { "patient:identifier": numbers };
const found = await receiver.search({ resourceType: "Task", searchParams: { ...wanted, _total: "accurate" } });
const task = found.entry[0].resource;
seen.found = [found.total, task.status];
const patched = await receiver.patch({
  resourceType: "Task",
  id: task.id,
  jsonPatch: [
    { op: "replace", path: "/status", value: "accepted" },
    { op: "replace", path: "/lastModified", value: new Date().toISOString() },
  ],
  options: named({ "If-Match": `W/"${task.meta.versionId}"` }),
});
seen.patched = [patched.status, patched.meta.versionId];
const history = await sender.history({ resourceType: "Task", id: task.id });
seen.history = history.entry.map((each) => each.resource.status);
seen.first = (await sender.vread({ resourceType: "Task", id: task.id, version: "1" })).status;
seen.request = (await receiver.read({ resourceType: "ServiceRequest", id: task.id })).status;
try {
  await receiver.update({ resourceType: "Task", id: task.id, body: { ...task, status: "received" }, options: named({ "If-Match": 'W/"1"' }) });
} catch (error) {
  seen.stale = [error.response.status, error.response.data.issue[0].code];
}
const page = await receiver.search({ resourceType: "Location", searchParams: { organization: "Organization/RH8" } });
seen.places = page.entry.length > 0;
console.log(JSON.stringify(seen));
