// A person's client that shares nothing with devices which their users did not sign, and believes none of these.
// matrix-js-sdk with its crypto in Rust, as modern clients have it; the test drives it through `window.strict`.
import { ClientEvent, EventType, MsgType, Preset, createClient } from "matrix-js-sdk";
import {
  EventShieldColour,
  EventShieldReason,
  OnlySignedDevicesIsolationMode,
  VerificationPhase,
  decodeRecoveryKey,
} from "matrix-js-sdk/lib/crypto-api/index.js";

let client, crypto;

// The account's first device makes its signing keys, a backup and a dehydrated device; it returns the recovery key, with
// which later devices are signed.
async function begin(homeserver, login, recovery) {
  let key = recovery && decodeRecoveryKey(recovery);
  client = createClient({
    baseUrl: homeserver,
    userId: login.user_id,
    deviceId: login.device_id,
    accessToken: login.access_token,
    cryptoCallbacks: { getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], key] },
  });
  await client.initRustCrypto({ useIndexedDB: false });
  crypto = client.getCrypto();
  crypto.setDeviceIsolationMode(new OnlySignedDevicesIsolationMode());
  const synced = new Promise((done) => client.once(ClientEvent.Sync, done));
  await client.startClient({ initialSyncLimit: 100 });
  await synced;
  await crypto.userHasCrossSigningKeys(login.user_id, true); // asks the homeserver
  const made = key ? null : await crypto.createRecoveryKeyFromPassphrase();
  key ??= made.privateKey;
  await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: (upload) => upload(null) });
  if (made) await crypto.bootstrapSecretStorage({ createSecretStorageKey: async () => made, setupNewKeyBackup: true });
  else await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
  await crypto.checkKeyBackupAndEnable();
  if (made) await crypto.startDehydration();
  return made?.encodedPrivateKey;
}

async function encryptedRoom(invite) {
  const content = { algorithm: "m.megolm.v1.aes-sha2" };
  const initial_state = [{ type: EventType.RoomEncryption, state_key: "", content }];
  return (await client.createRoom({ preset: Preset.PrivateChat, invite, initial_state })).room_id;
}

const invite = (room, user) => client.invite(room, user);

const joined = (room) => (client.getRoom(room)?.getJoinedMembers() ?? []).map((member) => member.userId);

const say = async (room, body) => (await client.sendMessage(room, { msgtype: MsgType.Text, body })).event_id;

// The devices of a user that the user's own key has signed.
async function signedDevices(user) {
  const all = [...((await crypto.getUserDeviceInfo([user], true)).get(user)?.keys() ?? [])];
  const states = await Promise.all(all.map((device) => crypto.getDeviceVerificationStatus(user, device)));
  return all.filter((_, number) => states[number].signedByOwner);
}

// What others said in a room, as this client shows it: the words or why there are none, and the warning beside them.
async function heard(room) {
  const found = [];
  for (const event of client.getRoom(room)?.getLiveTimeline().getEvents() ?? []) {
    if (event.getSender() === client.getUserId() || event.isState()) continue;
    await client.decryptEventIfNeeded(event);
    const shown = await crypto.getEncryptionInfoForEvent(event);
    found.push({
      id: event.getId(),
      sender: event.getSender(),
      answers: event.replyEventId,
      text: event.getContent().body,
      problem: event.decryptionFailureReason,
      encrypted: event.isEncrypted(),
      warning: shown ? [EventShieldColour[shown.shieldColour], EventShieldReason[shown.shieldReason] ?? ""] : null,
    });
  }
  return found;
}

// Ask a user, in a room, or one of their devices to compare emoji; returns the code with which they decline.
async function verify(user, { room, device }) {
  const asking = room ? crypto.requestVerificationDM(user, room) : crypto.requestDeviceVerification(user, device);
  const request = await asking;
  while (request.phase !== VerificationPhase.Cancelled) await new Promise((again) => setTimeout(again, 50));
  return request.cancellationCode;
}

window.strict = { begin, encryptedRoom, heard, invite, joined, say, signedDevices, verify };
