// Usage: npm install && node predict.js HOST:PORT MODEL '[17.99, 10.38, ...]'
// Calls a model with Node's own gRPC packages and the Open Inference Protocol; nothing of Headrace's is installed.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const [address, model, row] = process.argv.slice(2);
if (!row) {
  console.error("usage: node predict.js HOST:PORT MODEL '[1.0, 2.0, ...]'");
  process.exit(2);
}
const features = JSON.parse(row);

const proto = path.join(__dirname, '..', '..', '..', 'protos', 'third_party', 'inference', 'open_inference.proto');
const { inference } = grpc.loadPackageDefinition(protoLoader.loadSync(proto, { keepCase: true, longs: Number }));
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

const request = {
  model_name: model,
  inputs: [
    { name: 'features', datatype: 'FP32', shape: [1, features.length], contents: { fp32_contents: features } },
  ],
};
// An element of each type at a place among the bytes, and where the next one begins.
const readers = {
  FP32: (bytes, at) => [bytes.readFloatLE(at), at + 4],
  INT64: (bytes, at) => [Number(bytes.readBigInt64LE(at)), at + 8],
  // A text is its length in four bytes, and then itself.
  BYTES: (bytes, at) => {
    const end = at + 4 + bytes.readUInt32LE(at);
    return [bytes.toString('utf8', at + 4, end), end];
  },
};

// Triton answers raw bytes: one little-endian buffer for each output.
function decode(datatype, bytes) {
  const read = readers[datatype];
  if (!read) throw new Error(`this example does not read ${datatype}`);
  const values = [];
  for (let at = 0; at < bytes.length; ) {
    const [value, next] = read(bytes, at);
    values.push(value);
    at = next;
  }
  return values;
}

client.ModelInfer(request, { deadline: Date.now() + 5000 }, (error, response) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exit(1);
  }
  response.outputs.forEach((output, index) => {
    console.log(output.name, decode(output.datatype, response.raw_output_contents[index]));
  });
  console.log('version', response.model_version, 'prediction id', response.id);
});
