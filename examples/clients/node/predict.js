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
client.ModelInfer(request, { deadline: Date.now() + 5000 }, (error, response) => {
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exit(1);
  }
  // Triton answers raw bytes: one little-endian buffer for each output.
  response.outputs.forEach((output, index) => {
    const bytes = response.raw_output_contents[index];
    const values = [];
    const width = output.datatype === 'INT64' ? 8 : 4;
    for (let at = 0; at < bytes.length; at += width) {
      values.push(output.datatype === 'INT64' ? Number(bytes.readBigInt64LE(at)) : bytes.readFloatLE(at));
    }
    console.log(output.name, values);
  });
  console.log('version', response.model_version, 'prediction id', response.id);
});
