// A producer in Node 18 or newer, without any package.
//
//   node examples/producer.mjs +4915200000000 "Hello"
//
// GATEWAY, CA, CERT and KEY say where to and as whom; the defaults are those of `./broker up`.
// `Producer` is meant to be taken into a program of your own.

import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Agent, request } from 'node:https'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

/** The gateway will never take this message: 4xx, with what is wrong. */
export class Refused extends Error {
  constructor (status, problem) {
    super(`${status} ${problem.error}: ${problem.detail}`)
    this.status = status
    this.problem = problem
  }
}

/** Submits messages and asks for them, over connections that are kept open. */
export class Producer {
  constructor (gateway, { ca, cert, key, patience = 60_000 }) {
    this.gateway = gateway
    this.agent = new Agent({
      ca: readFileSync(ca), cert: readFileSync(cert), key: readFileSync(key), keepAlive: true
    })
    this.patience = patience
  }

  /**
   * The message's id, once the message is on the broker's disk. `key` names the message in your own system: submitted
   * again with the same key it is the same message. Throws Refused, or an Error when nothing is known in the end.
   */
  async submit (number, body, { metadata, key = randomUUID() } = {}) {
    const message = { sender_number: number, message_body: body, metadata }
    const answer = await this.#call('POST', '/api/v1/messages', message, { 'Idempotency-Key': key })
    return answer.message_id
  }

  /** Status, attempts, next retry. */
  status (id) {
    return this.#call('GET', `/api/v1/messages/${id}`)
  }

  /** Wait until it is `delivered` or `failed`. */
  async outcome (id) {
    for (;;) {
      const { status } = await this.status(id)
      if (status !== 'queued') return status
      await sleep(500)
    }
  }

  close () {
    this.agent.destroy()
  }

  /** No answer, 429 and 503 mean *unknown* or *later*: ask again, with the same key. */
  async #call (method, path, document, headers = {}) {
    const deadline = Date.now() + this.patience
    let wait = 100
    for (;;) {
      let after
      try {
        const answer = await this.#ask(method, path, document, headers)
        if (answer.status < 400) return answer.body
        if (answer.status !== 429 && answer.status !== 503) throw new Refused(answer.status, answer.body)
        after = answer.after
      } catch (error) {
        if (error instanceof Refused || error.code?.includes('CERT')) throw error
      }
      wait = after ? after * 1000 : Math.min(wait * 2, 5000)
      if (Date.now() + wait > deadline) throw new Error(`${method} ${path}: no definite answer in time`)
      await sleep(wait * (0.8 + Math.random() * 0.4))
    }
  }

  #ask (method, path, document, headers) {
    return new Promise((resolve, reject) => {
      const body = document && JSON.stringify(document)
      const sent = request(new URL(path, this.gateway), {
        method,
        agent: this.agent,
        timeout: 10_000,
        headers: body ? { ...headers, 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) } : headers
      }, async (response) => {
        try {
          let text = ''
          for await (const part of response.setEncoding('utf8')) text += part
          const after = Number(response.headers['retry-after'])
          resolve({ status: response.statusCode, body: JSON.parse(text || '{}'), after })
        } catch (error) {
          reject(error)
        }
      })
      sent.on('timeout', () => sent.destroy(new Error('no answer in time')))
      sent.on('error', reject)
      sent.end(body)
    })
  }
}

async function main ([number, body]) {
  if (!body) {
    console.error('usage: node producer.mjs NUMBER TEXT')
    return 2
  }
  const producer = new Producer(process.env.GATEWAY ?? 'https://localhost:8001', {
    ca: process.env.CA ?? 'certs/ca.crt',
    cert: process.env.CERT ?? 'certs/clients/demo/client.crt',
    key: process.env.KEY ?? 'certs/clients/demo/client.key'
  })
  try {
    const id = await producer.submit(number, body)
    console.log(`queued ${id}`)
    const outcome = await producer.outcome(id)
    console.log(`${outcome} ${id}`)
    return outcome === 'delivered' ? 0 : 1
  } catch (error) {
    if (!(error instanceof Refused)) throw error
    console.error(`refused: ${error.message}`)
    return 1
  } finally {
    producer.close()
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  process.exitCode = await main(process.argv.slice(2))
}
