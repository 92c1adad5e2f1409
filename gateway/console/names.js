/** What this tab calls the jobs that it started: the question, or the file's name. The gateway keeps no prompts. */

const PLACE = "headrace.names";
const MOST = 100;
const LONGEST = 500;

const names = new Map(JSON.parse(sessionStorage.getItem(PLACE) ?? "[]"));

export function nameJob(jobId, name) {
  names.delete(jobId); // the newest is last
  names.set(jobId, name.slice(0, LONGEST));
  while (names.size > MOST) names.delete(names.keys().next().value);
  try {
    sessionStorage.setItem(PLACE, JSON.stringify([...names]));
  } catch {
    // storage is full or forbidden: this page still knows them
  }
}

export const nameOfJob = (jobId) => names.get(jobId) ?? null;
