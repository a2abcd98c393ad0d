// Sends photos a few at a time, and backs off together when the service says so.

const MOST_AT_ONCE = 4; // Browsers open six connections to a host; two stay free for the rest of the page.
const MOST_TRIES = 30;
const LONGEST_WAIT_S = 30;
const pause = seconds => new Promise(done => setTimeout(done, 1000 * seconds));

export class Queue {
  /** *work* answers for an item, *changed* is told of each change of its `state`. */
  constructor(work, changed) {
    Object.assign(this, { work, changed, waiting: [], running: 0, limit: MOST_AT_ONCE, until: 0, round: 0 });
  }

  add(item, { first = false } = {}) {
    Object.assign(item, { state: "waiting", problem: null, tries: 0, round: this.round });
    this.changed(item);
    first ? this.waiting.unshift(item) : this.waiting.push(item);
    this.next();
  }

  /** What waits will not be sent. Answers under way are ignored. */
  stop() {
    this.round += 1;
    const left = this.waiting.splice(0);
    for (const item of left) this.become(item, "stopped");
  }

  next() {
    while (this.running < this.limit && this.waiting.length) this.send(this.waiting.shift());
  }

  async send(item) {
    const round = this.round;
    this.running += 1;
    try {
      await this.wait();
      if (round !== this.round) return this.become(item, "stopped");
      this.become(item, "sending");
      await this.attempt(item, round);
    } finally {
      this.running -= 1;
      this.next();
    }
  }

  async attempt(item, round) {
    try {
      await this.work(item);
      if (round !== this.round) return this.late(item);
      this.limit = Math.min(MOST_AT_ONCE, this.limit + 0.25);
      this.become(item, "done");
    } catch (problem) {
      if (round !== this.round) return this.late(item);
      item.problem = problem;
      if (problem.passes && ++item.tries < MOST_TRIES) this.backOff(item, problem);
      else this.become(item, "failed");
    }
  }

  /** An answer to what was stopped. The photo may have been sent again since: then that one counts. */
  late(item) {
    if (item.round < this.round) this.become(item, "stopped");
  }

  backOff(item, problem) {
    const seconds = Math.min(LONGEST_WAIT_S, problem.retryAfter ?? Math.min(8, 0.5 * 2 ** item.tries));
    this.limit = Math.max(1, this.limit / 2);
    this.until = Math.max(this.until, Date.now() + 1000 * seconds * (1 + 0.2 * Math.random()));
    this.become(item, "waiting");
    this.waiting.unshift(item);
  }

  async wait() {
    while (this.until > Date.now()) await pause((this.until - Date.now()) / 1000);
  }

  become(item, state) {
    item.state = state;
    this.changed(item);
  }
}
