// Calls a model from Go with grpc-go and the Open Inference Protocol; nothing of Headrace's is needed.
//
//	go run . HOST:PORT MODEL '[17.99, 10.38, ...]'
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"headrace.dev/examples/go/inference"
)

//go:generate ../../../.venv/bin/buf generate

const deadline = 10 * time.Second

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: go run . HOST:PORT MODEL '[1.0, 2.0, ...]'")
		os.Exit(2)
	}
	if err := predict(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// predict asks a model about one row of features, a JSON array, and prints each output and who answered.
func predict(address, model, row string) (err error) {
	var features []float32
	if err := json.Unmarshal([]byte(row), &features); err != nil {
		return fmt.Errorf("the row is not a JSON array of numbers: %w", err)
	}
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, connection.Close()) }()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()

	// The deadline travels with the call: when it has passed, the model is not run any more.
	answer, err := inference.NewGRPCInferenceServiceClient(connection).ModelInfer(ctx, &inference.ModelInferRequest{
		ModelName: model,
		Inputs: []*inference.ModelInferRequest_InferInputTensor{{
			Name:     "features",
			Datatype: "FP32",
			Shape:    []int64{1, int64(len(features))},
			Contents: &inference.InferTensorContents{Fp32Contents: features},
		}},
	})
	if err != nil {
		return err
	}
	for index, output := range answer.Outputs {
		values, err := decode(output.Datatype, answer.RawOutputContents[index])
		if err != nil {
			return fmt.Errorf("output %s: %w", output.Name, err)
		}
		fmt.Println(output.Name, values)
	}
	fmt.Println("version", answer.ModelVersion, "prediction id", answer.Id)
	return nil
}

// decode reads a tensor's elements from the bytes that Triton answers: little-endian, row-major; each text is its
// length in four bytes, and then itself.
func decode(datatype string, raw []byte) (any, error) {
	switch datatype {
	case "FP32":
		return read[float32](raw, 4)
	case "INT64":
		return read[int64](raw, 8)
	case "BYTES":
		return texts(raw)
	default:
		return nil, fmt.Errorf("this example does not read %s", datatype)
	}
}

func read[T float32 | int64](raw []byte, width int) ([]T, error) {
	values := make([]T, len(raw)/width)
	err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, values)
	return values, err
}

func texts(raw []byte) ([]string, error) {
	var values []string
	for len(raw) > 0 {
		if len(raw) < 4 || uint64(len(raw)-4) < uint64(binary.LittleEndian.Uint32(raw)) {
			return nil, errors.New("a text ends early")
		}
		end := 4 + int(binary.LittleEndian.Uint32(raw))
		values = append(values, string(raw[4:end]))
		raw = raw[end:]
	}
	return values, nil
}
